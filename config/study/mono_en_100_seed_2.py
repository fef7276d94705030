# English alone, another seed
from config.novels import *
dataset = 'study_mono_en'
out_dir = 'out/study/mono_en_100_seed_2'
seed = 2
