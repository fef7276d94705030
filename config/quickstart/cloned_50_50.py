# English and its clone, 50/50
from config.laptop import *
dataset = 'quickstart_cloned_50_50'
out_dir = 'out/quickstart/cloned_50_50'
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
