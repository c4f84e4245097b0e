import time, logging
import httpx

from tests.waiting import wait_until
async def test_prof(stage, monkeypatch):
    calls=[]
    orig=httpx.AsyncClient.send
    async def send(self, request, **kw):
        t=time.monotonic()
        status=None
        try:
            r=await orig(self, request, **kw); status=r.status_code; return r
        finally:
            calls.append((t, time.monotonic()-t, request.method, request.url.path, status))
    monkeypatch.setattr(httpx.AsyncClient,'send',send)
    async with stage.pool.working():
        t0=time.monotonic()
        await stage.start_many(10)
        await wait_until(lambda: len(stage.ray.jobs)>=10, timeout=100, description='x')
        import anyio
        await anyio.sleep(3)
    import re
    from collections import defaultdict
    agg=defaultdict(list)
    for t,d,m,p,s in calls:
        p=re.sub(r'[0-9a-f-]{36}','{id}',p); p=re.sub(r'ray-[0-9a-f]{8}','{pool}',p); p=re.sub(r'prefect-\S+','{job}',p)
        agg[(m,p,s)].append(d)
    for k,v in sorted(agg.items(), key=lambda kv:-sum(kv[1])): print(k, len(v), 'sum %.2f max %.2f'%(sum(v),max(v)))
    print('total', time.monotonic()-t0)
