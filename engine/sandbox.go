package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"berth"
	"berth/internal/netns"
	"berth/internal/plan"
	"berth/internal/store"
)

// CreateSandbox makes a network namespace and pins it in /run/netns under its
// name, so that ip-netns(8) knows it too.
func (e *Engine) CreateSandbox(ctx context.Context, spec SandboxSpec) (berth.Sandbox, error) {
	sb, err := e.createSandbox(ctx, spec)
	if err != nil {
		return sb, fmt.Errorf("create sandbox %s: %w", cut(spec.Name), err)
	}
	return sb, nil
}

func (e *Engine) createSandbox(ctx context.Context, spec SandboxSpec) (sb berth.Sandbox, err error) {
	if err := berth.ValidName("sandbox", spec.Name); err != nil {
		return sb, err
	}
	pending := berth.Sandbox{
		ID: "pending-" + spec.Name, Name: spec.Name, Created: time.Now().UTC(),
		Path: netns.Path(spec.Name), Owned: true, Labels: spec.Labels,
	}
	locks := func() ([]lock, error) {
		return []lock{{store.LockSandbox, "name-" + spec.Name, true}}, nil
	}
	err = e.do(ctx, locks, func(ctx context.Context) error {
		if err := e.announce(ctx, pending); err != nil {
			return err
		}
		drop := func(tx *store.Tx) error { return tx.DeleteSandbox(pending.ID) }
		if err := e.run(ctx, []plan.Step{plan.PutNetns{Name: spec.Name}}); err != nil {
			return errors.Join(err, e.store.Update(ctx, drop))
		}
		sb = pending
		if e.o.DryRun {
			sb.ID = hexOf("dry run", spec.Name)
			return nil
		}
		ns, err := netns.Open(pending.Path)
		if err != nil {
			return err
		}
		defer ns.Close()
		sb.Cookie, sb.ID = ns.Cookie(), e.identity(ns)
		return e.store.Update(ctx, func(tx *store.Tx) error {
			return errors.Join(drop(tx), tx.PutSandbox(sb))
		})
	})
	return sb, err
}

// announce records that a namespace is about to be made under a name, so that
// a crash leaves nothing that nobody knows. What an earlier crash left under
// this name is taken away.
func (e *Engine) announce(ctx context.Context, pending berth.Sandbox) error {
	var old berth.Sandbox
	var crashed bool
	err := e.store.View(ctx, func(tx *store.Tx) error {
		var err error
		if _, err = tx.Sandbox(pending.ID); err == nil {
			crashed = true
			return nil
		}
		old, err = tx.SandboxByName(pending.Name)
		return ignore(err, berth.ErrNotFound)
	})
	switch {
	case err != nil:
		return err
	case crashed:
		if err := e.run(ctx, []plan.Step{plan.DropNetns{Name: pending.Name}}); err != nil {
			return err
		}
	case old.ID != "" && !alive(old):
		return &deadOwners{[]string{old.ID}}
	case old.ID != "":
		return fmt.Errorf("there is a sandbox of that name: %w", berth.ErrExists)
	}
	if _, err := os.Lstat(pending.Path); err == nil && !crashed {
		return fmt.Errorf("%s is there and not Berth's: %w", pending.Path, berth.ErrExists)
	}
	return e.store.Update(ctx, func(tx *store.Tx) error { return tx.PutSandbox(pending) })
}

// RemoveSandbox disconnects a sandbox from everything and, if Berth made its
// namespace, takes the pin away; the namespace ends with its last process. A
// namespace that was found is only disconnected.
func (e *Engine) RemoveSandbox(ctx context.Context, ref string) error {
	if err := e.removeSandbox(ctx, ref); err != nil {
		return fmt.Errorf("remove sandbox %s: %w", cut(ref), err)
	}
	return nil
}

func (e *Engine) removeSandbox(ctx context.Context, ref string) error {
	sb, err := e.recorded(ctx, ref)
	if err != nil {
		return err
	}
	if err := e.leave(ctx, []string{sb.ID}, nil); err != nil {
		return err
	}
	if !sb.Owned {
		return nil
	}
	locks := func() ([]lock, error) {
		return []lock{{store.LockSandbox, sb.ID, true}, {store.LockSandbox, "name-" + sb.Name, true}}, nil
	}
	// Best effort, as ever: a lock file without its sandbox is only a file.
	defer e.store.Forget(store.LockSandbox, "name-"+sb.Name)
	defer e.store.Forget(store.LockSandbox, sb.ID)
	return e.do(ctx, locks, func(ctx context.Context) error {
		// As with creation: an intent that names only the pin.
		going := sb
		going.ID, going.Cookie = "pending-"+sb.Name, 0
		err := e.store.Update(ctx, func(tx *store.Tx) error {
			eps, err := tx.EndpointsOf(sb.ID)
			if err != nil {
				return err
			}
			if len(eps) > 0 {
				return fmt.Errorf("it was connected again meanwhile: %w", berth.ErrInUse)
			}
			return errors.Join(tx.DeleteSandbox(sb.ID), tx.PutSandbox(going))
		})
		if err != nil {
			return err
		}
		if err := e.run(ctx, []plan.Step{plan.DropNetns{Name: sb.Name}}); err != nil {
			return err
		}
		e.known.Delete(plan.Place(sb.ID))
		return e.store.Update(ctx, func(tx *store.Tx) error { return tx.DeleteSandbox(going.ID) })
	})
}

// Enter opens the namespace of a sandbox, for setns(2).
func (e *Engine) Enter(ctx context.Context, ref string) (*os.File, error) {
	_, ns, err := e.find(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("enter sandbox %s: %w", cut(ref), err)
	}
	return ns.File(), nil
}

// identity is a sandbox's id: a function of its namespace.
func (e *Engine) identity(ns *netns.NS) string {
	return hexOf("sandbox", e.bootID, strconv.FormatUint(ns.Cookie(), 10))
}

// find opens the namespace a reference leads to and returns its record, or the
// record it would have. The caller closes the namespace.
func (e *Engine) find(ctx context.Context, ref string) (berth.Sandbox, *netns.NS, error) {
	sb := berth.Sandbox{Name: ref, Created: time.Now().UTC()}
	switch pid, isPid := strings.CutPrefix(ref, "pid:"); {
	case isPid:
		n, err := strconv.ParseUint(pid, 10, 31)
		if err != nil || n == 0 {
			return sb, nil, fmt.Errorf("%q is no process id: %w", pid, berth.ErrInvalid)
		}
		sb.Path = fmt.Sprintf("/proc/%d/ns/net", n)
	case strings.HasPrefix(ref, "path:"):
		sb.Path = strings.TrimPrefix(ref, "path:")
		if name, ok := strings.CutPrefix(sb.Path, netns.Dir+"/"); ok && berth.ValidName("sandbox", name) == nil {
			sb.Name = name
		}
	default:
		known, err := e.recorded(ctx, ref)
		if err == nil {
			if ns, err := openSandbox(known); err == nil {
				return e.meet(known, ns)
			}
			// The name's namespace is gone; it may have come again.
		} else if !errors.Is(err, berth.ErrNotFound) {
			return sb, nil, err
		}
		if strings.Contains(ref, "/") || ref == "" || ref == "." || ref == ".." {
			return sb, nil, fmt.Errorf("no such sandbox; for a path write path:%s: %w", cut(ref), berth.ErrNotFound)
		}
		sb.Path = netns.Path(ref)
	}
	ns, err := netns.Open(sb.Path)
	if err != nil {
		var why *os.PathError
		if errors.As(err, &why) {
			err = fmt.Errorf("%s %s: %w", why.Op, cut(why.Path), why.Err)
		}
		return sb, nil, fmt.Errorf("no such sandbox (%v): %w", err, berth.ErrNotFound)
	}
	sb.Cookie, sb.ID = ns.Cookie(), e.identity(ns)
	err = e.store.View(ctx, func(tx *store.Tx) error {
		known, err := tx.Sandbox(sb.ID)
		if err == nil {
			// The same namespace by another way. The way that is known is kept
			// while it is open, unless it is a process's, which may end first.
			if known.Path != sb.Path && (inProc(known.Path) && !inProc(sb.Path) || !alive(known)) {
				known.Path, known.Cookie = sb.Path, sb.Cookie
			}
			sb = known
		}
		return ignore(err, berth.ErrNotFound)
	})
	if err != nil {
		ns.Close()
		return sb, nil, err
	}
	return e.meet(sb, ns)
}

func inProc(path string) bool { return strings.HasPrefix(path, "/proc/") }

// meet refuses the host itself and remembers how to find a sandbox.
func (e *Engine) meet(sb berth.Sandbox, ns *netns.NS) (berth.Sandbox, *netns.NS, error) {
	if ns.Cookie() == e.host.Cookie() {
		ns.Close()
		return sb, nil, fmt.Errorf("that is the host's own namespace: %w", berth.ErrInvalid)
	}
	e.known.Store(plan.Place(sb.ID), sb)
	return sb, ns, nil
}

// hold keeps the namespace of a sandbox open for what the kernel does with it,
// and returns what lets go of it.
func (e *Engine) hold(sb berth.Sandbox, ns *netns.NS) func() {
	e.open.Store(plan.Place(sb.ID), ns)
	return func() {
		e.open.Delete(plan.Place(sb.ID))
		ns.Close()
	}
}

// recorded returns a sandbox of the store by name, id, path or pid, alive or
// not. Its error leaves it to the caller to say which.
func (e *Engine) recorded(ctx context.Context, ref string) (sb berth.Sandbox, err error) {
	err = e.store.View(ctx, func(tx *store.Tx) error {
		if sb, err = tx.SandboxByName(ref); !errors.Is(err, berth.ErrNotFound) {
			return err
		}
		sb, err = tx.Sandbox(ref)
		return err
	})
	if err == nil {
		e.known.Store(plan.Place(sb.ID), sb)
	}
	if !errors.Is(err, berth.ErrNotFound) {
		return sb, err
	}
	if !strings.Contains(ref, ":") && !strings.HasPrefix(ref, "/") {
		return sb, fmt.Errorf("no such sandbox: %w", berth.ErrNotFound)
	}
	found, ns, ferr := e.find(ctx, ref)
	if ferr != nil {
		return sb, ferr
	}
	ns.Close()
	err = e.store.View(ctx, func(tx *store.Tx) error {
		sb, err = tx.Sandbox(found.ID)
		return err
	})
	if errors.Is(err, berth.ErrNotFound) {
		err = fmt.Errorf("it is on no network: %w", berth.ErrNotFound) // its id tells a user nothing
	}
	return sb, err
}

// Sandboxes returns all sandboxes of the store.
func (e *Engine) Sandboxes(ctx context.Context) ([]SandboxDetail, error) {
	out, err := e.RecordedSandboxes(ctx)
	for i := range out {
		out[i].Alive = alive(out[i].Sandbox)
	}
	return out, err
}

// RecordedSandboxes returns the same from the store alone, with none alive: to
// look costs a tenth of a millisecond each.
func (e *Engine) RecordedSandboxes(ctx context.Context) ([]SandboxDetail, error) {
	var out []SandboxDetail
	err := e.store.View(ctx, func(tx *store.Tx) error {
		sbs, err1 := tx.Sandboxes()
		eps, err2 := tx.Endpoints()
		all, err3 := tx.Ports() // to look for those of one endpoint goes over 256
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		of, to := map[string][]berth.Endpoint{}, map[berth.Port][]berth.Port{}
		for _, ep := range eps {
			of[ep.Sandbox] = append(of[ep.Sandbox], ep)
		}
		for _, p := range all {
			k := berth.Port{Sandbox: p.Sandbox, Network: p.Network, Interface: p.Interface}
			to[k] = append(to[k], p)
		}
		names := map[string]string{}
		for _, sb := range sbs {
			d, err := sandboxDetail(tx, sb, of[sb.ID], names, func(ep berth.Endpoint) ([]berth.Port, error) {
				return to[berth.Port{Sandbox: ep.Sandbox, Network: ep.Network, Interface: ep.Interface}], nil
			})
			if err != nil {
				return err
			}
			out = append(out, d)
		}
		return nil
	})
	return out, err
}

// InspectSandbox returns one sandbox. A namespace that Berth has not connected
// yet is returned without endpoints.
func (e *Engine) InspectSandbox(ctx context.Context, ref string) (SandboxDetail, error) {
	sb, ns, err := e.find(ctx, ref)
	d := SandboxDetail{Sandbox: sb, Alive: err == nil}
	if err == nil {
		ns.Close()
	} else if d.Sandbox, err = e.recorded(ctx, ref); err != nil {
		return d, fmt.Errorf("inspect sandbox %s: %w", cut(ref), err)
	}
	err = e.store.View(ctx, func(tx *store.Tx) error {
		eps, err := tx.EndpointsOf(d.Sandbox.ID)
		if err != nil {
			return err
		}
		full, err := sandboxDetail(tx, d.Sandbox, eps, map[string]string{}, tx.PortsTo)
		d.Endpoints = full.Endpoints
		return err
	})
	return d, err
}

// sandboxDetail joins a sandbox and its endpoints. names are those of networks
// that were looked up.
func sandboxDetail(tx *store.Tx, sb berth.Sandbox, eps []berth.Endpoint, names map[string]string, portsTo func(berth.Endpoint) ([]berth.Port, error)) (SandboxDetail, error) {
	d := SandboxDetail{Sandbox: sb, Endpoints: []EndpointDetail{}}
	for _, ep := range eps {
		if ep.Leaving {
			continue
		}
		ports, err := portsTo(ep)
		if err != nil {
			return d, err
		}
		if _, ok := names[ep.Network]; !ok {
			n, err := tx.Network(ep.Network)
			if ignore(err, berth.ErrNotFound) != nil {
				return d, err
			}
			names[ep.Network] = n.Name
		}
		d.Endpoints = append(d.Endpoints, EndpointDetail{Endpoint: ep, SandboxName: sb.Name, NetworkName: names[ep.Network], Ports: ports})
	}
	return d, nil
}

// ignore returns err unless it matches what.
func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// cut keeps what a user typed short enough for one line.
func cut(s string) string {
	if len(s) > 60 {
		return s[:57] + "…"
	}
	return s
}
