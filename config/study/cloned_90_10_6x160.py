# English and its clone, 90/10, 6x160
from config.novels import *
dataset = 'study_cloned_90_10'
out_dir = 'out/study/cloned_90_10_6x160'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
n_layer = 6
n_embd = 160
n_head = 5
