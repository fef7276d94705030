# config/en_fr_de_shared.py - three languages with one tokenizer trained on all of them, on ELTeC's novels, a GPT of 4 x 512
dataset = 'en_fr_de_shared'
out_dir = 'out/en_fr_de_shared'
corpora = {'en': 'eltec:eng', 'fr': 'eltec:fra', 'de': 'eltec:deu'}
languages = [('EN', 'en'), ('FR', 'fr'), ('DE', 'de')]
schedule = [(0.0, (0.8, 0.1, 0.1))]
tokenizer = 'shared'
n_layer = 4
n_embd = 512
n_head = 8
batch_size = 32
max_iters = 1000
warmup_iters = 50
