"""A page in the browser to sample, paint structure, take images apart and edit them.

`python -m nvg_jax.demo` opens it on the weights that come with the package; its flags are in
`__main__.py`. Only `page.py` and `__main__.py` need Gradio.
"""
