# English and its clone, 60/40
from config.novels import *
dataset = 'study_cloned_60_40'
out_dir = 'out/study/cloned_60_40'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.6, 0.4))]
