# English alone on 10% of the tokens: a whole run with its own cosine, for the scaling law
from config.laptop import *
dataset = 'quickstart_mono'
out_dir = 'out/quickstart/mono_010'
languages = [('EN', 'en')]
schedule = [(0.0, (1.0,))]
max_iters = max_iters * 10 // 100
