# English alone, 20% of the tokens, 6x160
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_020_6x160'
max_iters = 600
n_layer = 6
n_embd = 160
n_head = 5
