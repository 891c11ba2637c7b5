package kernel

import (
	"testing"

	"berth/internal/plan"
)

// TestShapeIsReadAsPut: what is put is what is read, whatever the rate; doing
// it twice changes nothing, and nothing stays of what is taken away.
func TestShapeIsReadAsPut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	turnstile := plan.LinkKey{Name: "bt1-out"}
	link := plan.Link{Kind: plan.Turnstile, Alias: "berth:1", MTU: 1500, Up: true, NoLinkLocal: true}
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"), plan.PutLink{Key: turnstile, Link: link})
	if got := w.read(t).Links[turnstile]; got != link {
		t.Errorf("turnstile\n got %+v\nwant %+v", got, link)
	}
	was := plan.Shape{}
	for _, want := range []plan.Shape{
		{Divert: turnstile.Name},
		{Rate: 125, Burst: 2048, Queue: 17000, Divert: turnstile.Name},
		{Rate: 1.25e6, Burst: 32 << 10, Queue: 100000, Divert: turnstile.Name},
		{Rate: 1.25e8, Burst: 1 << 20, Queue: 1 << 22},
		{Rate: 1.25e8, Burst: 31 << 10, Queue: 1 << 22},
		{Rate: 1<<32 + 5, Burst: 64 << 10, Queue: 1 << 31, Divert: turnstile.Name},
		{Rate: 5e10, Burst: 1 << 24, Queue: 1 << 31},
		{},
	} {
		for range 2 {
			w.apply(t, plan.PutShape{Key: outKey, Shape: want, Was: was})
			if got := w.read(t).Shapes[outKey]; got != want {
				t.Errorf("got %+v, want %+v", got, want)
			}
		}
		was = want
	}
	if got := w.host.Run(t, "tc", "qdisc", "show", "dev", outKey.Name); got != "qdisc noqueue 0: root refcnt 2 \n" {
		t.Errorf("left %s", got)
	}
}

// TestShapeLeavesOthers: a filter and a queue of somebody else's stay.
func TestShapeLeavesOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "c1")
	turnstile := plan.LinkKey{Name: "bt1-out"}
	w.apply(t, putBridge(), putPair(outKey, inKey, "berth:1"),
		plan.PutLink{Key: turnstile, Link: plan.Link{Kind: plan.Turnstile, Alias: "berth:1", MTU: 1500, Up: true, NoLinkLocal: true}})
	w.host.Run(t, "tc", "qdisc", "add", "dev", outKey.Name, "clsact")
	w.host.Run(t, "tc", "filter", "add", "dev", outKey.Name, "ingress", "pref", "7", "u32", "match", "u32", "0", "0", "flowid", "1:1")
	shape := plan.Shape{Rate: 1e6, Burst: 32 << 10, Queue: 1 << 20, Divert: turnstile.Name}
	w.apply(t, plan.PutShape{Key: outKey, Shape: shape})
	if got := w.read(t).Shapes[outKey]; got != shape {
		t.Errorf("got %+v, want %+v", got, shape)
	}
	w.host.Run(t, "tc", "qdisc", "replace", "dev", outKey.Name, "root", "handle", "7:", "pfifo")
	w.apply(t, plan.PutShape{Key: outKey, Was: shape})
	if got := w.host.Run(t, "tc", "filter", "show", "dev", outKey.Name, "ingress"); got == "" {
		t.Error("the other filter is gone")
	}
	if got := w.read(t).Shapes[outKey]; got != (plan.Shape{}) {
		t.Errorf("left %+v", got)
	}
	if got := w.host.Run(t, "tc", "qdisc", "show", "dev", outKey.Name, "root"); got == "" || got[:13] != "qdisc pfifo 7" {
		t.Errorf("the other queue is gone: %s", got)
	}
}
