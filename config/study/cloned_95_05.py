# English and its clone, 95/5
from config.novels import *
dataset = 'study_cloned_95_05'
out_dir = 'out/study/cloned_95_05'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.95, 0.05))]
