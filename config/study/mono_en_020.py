# English alone, 20% of the tokens
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_020'
max_iters = 600
