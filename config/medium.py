# config/medium.py - GPT medium (303M without embeddings), after any config: config/cloned_90_10.py config/medium.py
n_layer = 24
n_embd = 1024
n_head = 16
batch_size = 256
max_iters = 18265 // 2  # for equal tokens
micro_batch_size = 64  # 35 GiB, computed; all 256 at once: 116
