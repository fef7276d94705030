# English and its clone, 90/10, 2x64
from config.novels import *
dataset = 'study_cloned_90_10'
out_dir = 'out/study/cloned_90_10_2x64'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
n_layer = 2
n_embd = 64
n_head = 2
