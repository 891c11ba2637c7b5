package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// readBack panics if the kernel is not what applying d should have made of it.
// It is for tests (BERTH_VERIFY=1): in earnest, check and reconcile look.
func (e *Engine) readBack(ctx context.Context, d plan.Delta) {
	if !e.verify || e.o.DryRun || d.Empty() {
		return
	}
	wrong, err := e.unlike(ctx, d)
	if err != nil {
		panic(fmt.Sprintf("BERTH_VERIFY: %v", err))
	}
	if len(wrong) > 0 {
		panic(fmt.Sprintf("BERTH_VERIFY: not as applied: %q", wrong))
	}
}

// whole reports whether the kernel has all that is wanted for a sandbox, its
// networks and its ports, and no limit that is not.
func (e *Engine) whole(ctx context.Context, sandbox string) (bool, error) {
	var d plan.Delta
	err := e.store.View(ctx, func(tx *store.Tx) error {
		t := touch{sandboxes: []string{sandbox}}
		atts, err := attachments(tx, sandbox)
		if err != nil {
			return err
		}
		for i, a := range atts {
			t.networks = append(t.networks, a.Network.ID)
			atts[i].Endpoint.Rates = berth.Rates{In: berth.Rate{Bits: 1e6}, Out: berth.Rate{Bits: 1e6}}
		}
		limited := plan.Sandbox(sandbox, atts)
		d.Drop = plan.State{Links: limited.Links, Shapes: limited.Shapes}
		ports, err := tx.PortsOf(sandbox)
		if err != nil {
			return err
		}
		d.Put, err = t.state(tx, ports)
		return err
	})
	if err != nil {
		return false, err
	}
	wrong, err := e.unlike(ctx, d)
	return len(wrong) == 0, err
}

// unlike names what in the kernel is not what applying d makes of it.
func (e *Engine) unlike(ctx context.Context, d plan.Delta) (wrong []string, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	have, err := e.kernel.Read(ctx, places(d), slices.Collect(maps.Keys(d.Put.Sysctls)))
	if err != nil {
		return nil, err
	}
	if d.Put.Table && !have.Table || d.Drop.Table && !d.Put.Table && (have.Table || have.OtherTable) {
		wrong = append(wrong, "the table")
	}
	return slices.Concat(wrong,
		differ(d.Put.Links, d.Drop.Links, have.Links), differ(d.Put.Addrs, d.Drop.Addrs, have.Addrs),
		differ(d.Put.Routes, d.Drop.Routes, have.Routes), differ(d.Put.Rules, d.Drop.Rules, have.Rules),
		differ(d.Put.Sysctls, nil, have.Sysctls), differ(d.Put.Elems, d.Drop.Elems, have.Elems),
		differ(d.Put.Shapes, d.Drop.Shapes, have.Shapes)), nil
}

// places are where the objects of d are.
func places(d plan.Delta) []plan.Place {
	all := map[plan.Place]bool{plan.Host: true}
	for _, s := range []plan.State{d.Put, d.Drop} {
		for k, l := range s.Links {
			all[k.Place], all[l.Peer.Place] = true, true
		}
		for k := range s.Addrs {
			all[k.Link.Place] = true
		}
		for k := range s.Routes {
			all[k.Place] = true
		}
		for k := range s.Rules {
			all[k.Place] = true
		}
		for k := range s.Sysctls {
			all[k.Place] = true
		}
		for k := range s.Shapes {
			all[k.Place] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// differ names what was put and is not there so, and what was dropped and is
// there.
func differ[K, V comparable](put, drop, have map[K]V) (wrong []string) {
	for k, want := range put {
		if is, ok := have[k]; !ok || is != want {
			wrong = append(wrong, fmt.Sprintf("%v: is %v, put %v", k, is, want))
		}
	}
	for k := range drop {
		_, again := put[k]
		if is, ok := have[k]; ok && !again {
			wrong = append(wrong, fmt.Sprintf("%v: is %v, dropped", k, is))
		}
	}
	return wrong
}
