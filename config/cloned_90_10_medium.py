# config/cloned_90_10_medium.py - Figures 2 and 9: English and its clone, 90/10, GPT medium (24 x 1024: 303M, batch 256)
dataset = 'cloned_90_10'
out_dir = 'out/cloned_90_10_medium'
corpora = {'en': 'hf:storytracer/LoC-PD-Books:text'}
languages = [('EN1', 'en'), ('EN2', 'en')]
schedule = [(0.0, (0.9, 0.1))]
n_layer = 24
n_embd = 1024
n_head = 16
batch_size = 256
max_iters = 18265 // 2
