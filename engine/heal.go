package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"berth"
	"berth/internal/plan"
	"berth/internal/store"
)

// Check compares the kernel with what the store wants and changes nothing.
// What differs is in the Report; an error says that it could not look.
func (e *Engine) Check(ctx context.Context) (Report, error) {
	unlock, err := e.lock(ctx, []lock{{kind: store.LockHost, exclusive: true}})
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	var w world
	err = e.store.View(ctx, func(tx *store.Tx) (err error) {
		w, err = readWorld(tx)
		return err
	})
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	v4, v6 := families(w.list())
	if w.facts, err = e.learn(w.facts, v4, v6); err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	d, err := e.compare(ctx, w)
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	r := e.report(w, d)
	if r.Obstacles, err = e.obstacles(w.list()); err != nil {
		return r, fmt.Errorf("check: %w", err)
	}
	r.Notes, err = e.shadows(w.ports)
	return r, err
}

// Reconcile makes the kernel what the store wants, forgets sandboxes whose
// namespace is gone, and finishes or undoes what a crash left half done. The
// Report says what was found.
func (e *Engine) Reconcile(ctx context.Context) (Report, error) {
	r, err := e.heal(ctx, nil)
	if err != nil {
		return r, fmt.Errorf("reconcile: %w", err)
	}
	return r, nil
}

// compare reads the host and returns what it takes to get to the whole plan.
// Sandboxes whose namespace is gone are not read. A host that belongs to another
// run store is an error.
func (e *Engine) compare(ctx context.Context, w world) (plan.Delta, error) {
	want := w.state()
	sysctls := slices.Collect(maps.Keys(want.Sysctls))
	for k := range w.facts.switched() {
		if _, ok := want.Sysctls[k]; !ok {
			sysctls = append(sysctls, k)
		}
	}
	places := []plan.Place{plan.Host}
	for id, sb := range w.sandboxes {
		e.known.Store(plan.Place(id), sb)
		if alive(sb) {
			places = append(places, plan.Place(id))
		}
	}
	slices.Sort(places)
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.kernel.Release()
	gen, err := e.kernel.Generation()
	if err != nil {
		return plan.Delta{}, err
	}
	if _, err := e.table(); err != nil {
		return plan.Delta{}, err
	}
	have, err := e.kernel.Read(ctx, places, sysctls)
	if err != nil {
		return plan.Delta{}, err
	}
	for k, on := range w.facts.switched() {
		// A crash before the host's part was put back: it is Berth's still if it
		// is as Berth left it.
		if _, ok := want.Sysctls[k]; !ok && have.Sysctls[k] != on {
			delete(have.Sysctls, k)
		}
	}
	// Uplinks come and go: one that is not there needs nothing.
	maps.DeleteFunc(want.Sysctls, func(k plan.SysctlKey, v string) bool {
		_, there := have.Sysctls[k]
		return !there && plan.BelievesRA(k, v)
	})
	d := plan.Diff(have, want)
	e.trusted = 0
	if !d.Put.Table && !d.Drop.Table {
		e.trusted = gen
	}
	return d, nil
}

// clean reports whether the kernel is what the store wants. It reads the whole
// host, and is for when something is refused anyway.
func (e *Engine) clean(ctx context.Context) (bool, error) {
	var w world
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		w, err = readWorld(tx)
		return err
	})
	if err != nil {
		return false, err
	}
	d, err := e.compare(ctx, w)
	return d.Empty(), err
}

// heal reads the whole host and brings it to what the store wants. It is the
// one way back after an error, a flush, a crash or a reboot. first, if not
// nil, changes the store before.
func (e *Engine) heal(ctx context.Context, first func(*store.Tx) error) (Report, error) {
	unlock, err := e.lock(ctx, []lock{{kind: store.LockHost, exclusive: true}})
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	w, err := e.gather(ctx, first)
	if err != nil {
		return Report{}, err
	}
	d, err := e.compare(ctx, w)
	if err != nil {
		return Report{}, err
	}
	e.keepForwarding(&d, w.facts, e.o.Notice)
	r := e.report(w, d)
	if err := e.mend(ctx, w, d); err != nil {
		return r, err
	}
	return r, e.finish(ctx, w, d)
}

// gather reads what is wanted, after it has written down what is seen now:
// which sandboxes are gone, and what the host was like before Berth.
func (e *Engine) gather(ctx context.Context, first func(*store.Tx) error) (world, error) {
	var w world
	read := func(tx *store.Tx) (err error) {
		w, err = readWorld(tx)
		return err
	}
	if first != nil {
		if err := e.store.Update(ctx, first); err != nil {
			return w, err
		}
	}
	if err := e.store.View(ctx, read); err != nil {
		return w, err
	}
	v4, v6 := families(w.list())
	f, err := e.learn(w.facts, v4, v6)
	if err != nil {
		return w, err
	}
	lost, err := e.lost(w.endpoints)
	if err != nil {
		return w, err
	}
	var leaving []berth.Endpoint
	for _, ep := range w.endpoints {
		_, onNetwork := w.networks[ep.Network]
		if !ep.Leaving && (!onNetwork || lost[ep.ID] || !alive(w.sandboxes[ep.Sandbox])) {
			leaving = append(leaving, ep)
		}
	}
	if len(leaving) == 0 && f == w.facts {
		return w, nil
	}
	err = e.store.Update(ctx, func(tx *store.Tx) error {
		if f != w.facts {
			if err := writeFacts(tx, f); err != nil {
				return err
			}
		}
		for _, ep := range leaving {
			if err := retire(tx, ep); err != nil {
				return err
			}
		}
		return read(tx)
	})
	return w, err
}

// retire marks an endpoint as leaving and forgets the ports that lead to it.
func retire(tx *store.Tx, ep berth.Endpoint) error {
	ports, err := tx.PortsTo(ep)
	if err != nil {
		return err
	}
	if err := tx.DeletePorts(ports...); err != nil {
		return err
	}
	n, err := tx.Network(ep.Network)
	if errors.Is(err, berth.ErrNotFound) {
		return tx.DeleteEndpoint(ep.Sandbox, ep.Interface)
	}
	if err != nil {
		return err
	}
	ep.Leaving = true
	return tx.PutEndpoint(ep, scope(n))
}

// mend applies d. If that fails as a whole, every part is tried by itself, so
// that one sandbox that cannot be brought to order does not keep the others
// from it.
func (e *Engine) mend(ctx context.Context, w world, d plan.Delta) error {
	err := e.apply(ctx, d)
	if err != nil {
		e.o.Log.Info("mending part by part", "error", err)
		if err = e.mendParts(ctx, w); err != nil {
			return err
		}
	}
	if e.o.DryRun {
		return nil
	}
	left, err := e.compare(ctx, w)
	if err != nil {
		return err
	}
	e.keepForwarding(&left, w.facts, func(string) {})
	if !left.Empty() {
		return fmt.Errorf("the kernel did not become what was wanted (%s): %w", summary(e.report(w, left)), berth.ErrDrifted)
	}
	e.store.SetGeneration(e.trusted)
	return nil
}

func (e *Engine) mendParts(ctx context.Context, w world) error {
	d, err := e.compare(ctx, w)
	if err != nil {
		return err
	}
	e.keepForwarding(&d, w.facts, func(string) {})
	of := map[string][]berth.Endpoint{}
	for _, ep := range w.endpoints {
		of[ep.Sandbox] = append(of[ep.Sandbox], ep)
	}
	var parts []plan.State
	for _, id := range slices.Sorted(maps.Keys(of)) {
		one := w
		one.facts, one.ports = facts{}, nil
		one.endpoints = of[id]
		s := one.state()
		s.Table, s.Elems = false, nil
		parts = append(parts, s)
	}
	rest, split := d.Split(parts)
	errs := []error{e.apply(ctx, rest)}
	for _, p := range split {
		errs = append(errs, e.apply(ctx, p))
	}
	return errors.Join(errs...)
}

// finish forgets what has left the kernel, by d or before.
func (e *Engine) finish(ctx context.Context, w world, d plan.Delta) error {
	var pending []plan.Step
	if addrs := w.left(d); len(addrs) > 0 {
		pending = append(pending, plan.FlushConntrack{Addrs: addrs})
	}
	gone := map[string]bool{}
	busy := map[string]bool{}
	for _, ep := range w.endpoints {
		if !ep.Leaving {
			busy[ep.Sandbox] = true
		}
	}
	for id, sb := range w.sandboxes {
		if sb.Cookie == 0 {
			pending = append(pending, plan.DropNetns{Name: sb.Name})
		}
		gone[id] = !busy[id] && (!sb.Owned || !alive(sb))
	}
	if err := e.run(ctx, pending); err != nil {
		return err
	}
	kept := w.facts.of(w.list())
	forget := kept != w.facts
	work := forget || slices.ContainsFunc(w.endpoints, func(ep berth.Endpoint) bool { return ep.Leaving })
	for _, g := range gone {
		work = work || g
	}
	if !work {
		return nil
	}
	return e.store.Update(ctx, func(tx *store.Tx) error {
		if forget {
			if err := writeFacts(tx, kept); err != nil {
				return err
			}
		}
		for _, ep := range w.endpoints {
			if ep.Leaving {
				if err := tx.DeleteEndpoint(ep.Sandbox, ep.Interface); err != nil {
					return err
				}
			}
		}
		for id, g := range gone {
			if !g {
				continue
			}
			e.known.Delete(plan.Place(id))
			if err := tx.DeleteSandbox(id); err != nil {
				return err
			}
		}
		return nil
	})
}

// keepForwarding takes the host's forwarding out of what is dropped where it
// was on before Berth, or where somebody else has come to need it.
func (e *Engine) keepForwarding(d *plan.Delta, f facts, notice func(string)) {
	keep := func(path string, fam *forwarding) {
		k := plan.SysctlKey{Place: plan.Host, Path: path}
		if _, dropped := d.Drop.Sysctls[k]; !dropped {
			return
		}
		if _, again := d.Put.Sysctls[k]; again {
			return
		}
		if fam == nil || fam.Was != "0" {
			delete(d.Drop.Sysctls, k)
			return
		}
		if why := e.stranger(*fam); why != "" {
			delete(d.Drop.Sysctls, k)
			for _, l := range fam.AcceptRA { // with forwarding on, 1 is none
				delete(d.Drop.Sysctls, acceptRA(l))
			}
			notice(fmt.Sprintf("forwarding stays on: %s may need it; to switch it off: sysctl -w %s=0", why, strings.ReplaceAll(path, "/", ".")))
		}
	}
	keep(plan.Forward4, f.V4)
	keep(plan.Forward6, f.V6)
}

// stranger names what makes the host a router without Berth by now: a bridge
// or tunnel that was not there before, or a forward chain of another tool.
func (e *Engine) stranger(f forwarding) string {
	links, err := e.kernel.Links(plan.Host)
	if err != nil {
		return "this host could not be read (" + err.Error() + "): something"
	}
	for _, l := range links {
		switch l.Kind {
		case "bridge", "tun", "wireguard", "vxlan", "gre", "ipip", "sit", "macvlan", "ipvlan":
			if !strings.HasPrefix(l.Alias, plan.AliasPrefix) && !slices.Contains(f.Uplinks, l.Name) {
				return l.Kind + " " + l.Name
			}
		}
	}
	chains, err := e.kernel.ForwardChains()
	if err != nil {
		return "this host's firewall could not be read (" + err.Error() + "): something"
	}
	if len(chains) > 0 {
		return "the forward chain " + chains[0]
	}
	return ""
}

func summary(r Report) string {
	var parts []string
	for _, l := range slices.Concat(r.Missing, r.Extra, r.Changed) {
		parts = append(parts, l)
		if len(parts) == 3 {
			parts = append(parts, "…")
			break
		}
	}
	return strings.Join(parts, "; ")
}
