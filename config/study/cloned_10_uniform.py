# English and nine clones, 10% each
from config.novels import *
dataset = 'study_cloned_10_uniform'
out_dir = 'out/study/cloned_10_uniform'
languages = [(f'EN{i}', 'en') for i in range(1, 11)]
schedule = [(0.0, (0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1))]
