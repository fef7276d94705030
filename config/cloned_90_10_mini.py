# config/cloned_90_10_mini.py - Figures 2 and 9: English and its clone, 90/10, GPT mini (4 x 512, 8 heads of 32: 11M)
dataset = 'cloned_90_10'
out_dir = 'out/cloned_90_10_mini'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
n_layer = 4
n_embd = 512
n_head = 8
head_dim = 32
