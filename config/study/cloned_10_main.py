# English and nine clones, 50% and 5.6% each
from config.novels import *
dataset = 'study_cloned_10_main'
out_dir = 'out/study/cloned_10_main'
languages = [(f'EN{i}', 'en') for i in range(1, 11)]
schedule = [(0.0, (0.5,) + (1 / 18,) * 9)]
