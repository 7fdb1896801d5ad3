from .fakeengine import *
def answer(r: Request) -> Answer:
    if r.path=='/containers/create': return Answer({"Id":"a"*64,"Warnings":[]},201)
    if r.path.endswith("/start"): return Answer(None,204)
    return Answer({"message":"no"},404)
