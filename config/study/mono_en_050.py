# English alone, 50% of the tokens
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_050'
max_iters = 1500
