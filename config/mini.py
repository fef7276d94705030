# config/mini.py - GPT mini (11M without embeddings), after any config: config/cloned_90_10.py config/mini.py
n_layer = 4
n_embd = 512
n_head = 8
head_dim = 32
