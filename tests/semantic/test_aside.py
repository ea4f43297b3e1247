"""Work aside: in order, until its owner ends it."""

import threading

from semcache.semantic.aside import Aside


def test_work_is_done_in_order_by_one_thread():
    aside, done, threads, all_done = Aside("aside"), [], set(), threading.Event()
    for number in range(100):
        aside.submit(lambda number=number: (done.append(number), threads.add(threading.current_thread().name)))
    aside.submit(all_done.set)
    assert all_done.wait(10)
    assert (done, threads) == (list(range(100)), {"aside"})
    aside.close()


def test_close_lets_running_work_notice_and_drops_what_waits():
    """Closing waits for what runs, which sees that it is closed; what was to come after it is not begun."""
    aside, began, done = Aside("aside"), threading.Event(), []

    def work():
        began.set()
        while not aside.is_closed():
            pass
        done.append("noticed")

    aside.submit(work)
    aside.submit(lambda: done.append("begun"))
    assert began.wait(10)
    aside.close()
    aside.submit(lambda: done.append("after"))
    assert done == ["noticed"]
    assert not [thread for thread in threading.enumerate() if thread.name == "aside" and thread.is_alive()]
