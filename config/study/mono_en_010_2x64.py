# English alone, 10% of the tokens, 2x64
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_010_2x64'
max_iters = 300
n_layer = 2
n_embd = 64
n_head = 2
