# English and its clone, 50/50, 2x64
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/cloned_50_50_2x64'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
n_layer = 2
n_embd = 64
n_head = 2
