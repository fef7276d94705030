# English and its clone, 70/30
from config.novels import *
dataset = 'study_cloned_70_30'
out_dir = 'out/study/cloned_70_30'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.7, 0.3))]
