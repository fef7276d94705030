# config/cloned_50_50_mini.py - Figures 2 and 9: English and its clone, 50/50, GPT mini (4 x 512, 8 heads of 32: 11M)
dataset = 'cloned_50_50'
out_dir = 'out/cloned_50_50_mini'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
n_layer = 4
n_embd = 512
n_head = 8
head_dim = 32
