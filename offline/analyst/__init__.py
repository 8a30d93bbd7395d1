"""The `analyst` reasoner: chains written from statistics of the training split. It is no language model.

    catalogue    what is known of an item, and how it is put in words
    operations   the steps that a path can be made of: their words, and what each does to the ranking
    ranking      items for a history under the weights of a path
    wording      what a step says
    engine       all of it together: `Analyst`

`offline.llm.analyst` puts it behind the protocol that language models implement.
"""
