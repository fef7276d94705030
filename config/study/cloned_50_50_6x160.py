# English and its clone, 50/50, 6x160
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/cloned_50_50_6x160'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
n_layer = 6
n_embd = 160
n_head = 5
