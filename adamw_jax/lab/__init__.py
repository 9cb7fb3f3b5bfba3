"""The laboratory: tasks, models, experiments, reports and the command line.

The library never imports it. It needs the extra ``demo`` (flax, scikit-learn, matplotlib, rich,
tyro), and uses only public names of the library.
"""
