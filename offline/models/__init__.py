"""The models: backbones, order-preserving fusion, the semantic-ID decoder and its trie beam."""
