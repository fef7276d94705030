# English, then its clone
from config.novels import *
dataset = 'study_cloned_50_50'
out_dir = 'out/study/cloned_100_0_then_0_100'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (1.0, 0.0)), (0.5, (0.0, 1.0))]
