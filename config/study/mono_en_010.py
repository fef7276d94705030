# English alone, 10% of the tokens
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_010'
max_iters = 300
