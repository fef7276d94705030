# config/cloned_50_50_medium.py - Figures 2 and 9: English and its clone, 50/50, GPT medium (24 x 1024: 303M, batch 256)
dataset = 'cloned_50_50'
out_dir = 'out/cloned_50_50_medium'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.5, 0.5))]
n_layer = 24
n_embd = 1024
n_head = 16
batch_size = 256
max_iters = 18265 // 2
