# English and its clone, 80/20
from config.novels import *
dataset = 'study_cloned_80_20'
out_dir = 'out/study/cloned_80_20'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.8, 0.2))]
