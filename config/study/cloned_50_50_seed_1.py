# English and its clone, 50/50, another seed
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/cloned_50_50_seed_1'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
seed = 1
