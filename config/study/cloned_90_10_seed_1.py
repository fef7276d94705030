# English and its clone, 90/10, another seed
from config.novels import *
dataset = 'study_cloned_90_10'
out_dir = 'out/study/cloned_90_10_seed_1'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
seed = 1
