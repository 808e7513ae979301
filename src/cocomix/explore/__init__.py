"""`cocomix explore`: a local web page to look into trained students and to steer them.

    cli -> serve     prepares the runs, then serves
    serve -> app     guard (who may ask) around api (what can be asked) and the page's files
    api -> catalog   from a model's key to an opened student
    catalog -> instrument, duet   what one student can be asked; these know nothing of the web

Work on models is done in threads, behind a lock for each model, so the event loop only ever waits.
"""
