# English alone, 70% of the tokens
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_070'
max_iters = 2100
