package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"berth"
	"berth/internal/ipam"
	"berth/internal/plan"
	"berth/internal/store"
)

// A Prospect is what there is where a sandbox is to be connected.
type Prospect struct {
	Network   berth.Network    // the zero value, if there is none
	Vacant    bool             // no sandbox is connected to it
	Endpoints []berth.Endpoint // of the sandbox, on the network
}

// Prospect looks at what a sandbox is to be connected to: the network, and the
// endpoints on it that carry all of some labels, of the sandbox or of one that
// is recorded under another name. The sandbox must be there, as for
// [Engine.Connect].
func (e *Engine) Prospect(ctx context.Context, network string, labels map[string]string, sandbox string, names ...string) (Prospect, error) {
	sb, ns, err := e.find(ctx, sandbox)
	if err != nil {
		return Prospect{}, fmt.Errorf("sandbox %s: %w", cut(sandbox), err)
	}
	ns.Close()
	p, err := e.prospect(ctx, network, labels, append([]string{sb.ID}, names...))
	if errors.Is(err, berth.ErrNotFound) {
		err = nil
	}
	return p, err
}

// FindEndpoints returns the endpoints on a network that carry all of some
// labels, those included that a crash left half way. With references of
// sandboxes it looks at theirs only; one that is unknown has none.
func (e *Engine) FindEndpoints(ctx context.Context, network string, labels map[string]string, sandboxes ...string) ([]berth.Endpoint, error) {
	var known []string
	for _, ref := range sandboxes {
		if strings.Contains(ref, ":") { // no name: it has to be opened
			sb, ns, err := e.find(ctx, ref)
			if ignore(err, berth.ErrNotFound) != nil {
				return nil, fmt.Errorf("sandbox %s: %w", cut(ref), err)
			}
			if err != nil {
				continue
			}
			ns.Close()
			ref = sb.ID
		}
		known = append(known, ref)
	}
	if len(sandboxes) > 0 && len(known) == 0 {
		_, err := e.Network(ctx, network)
		return nil, err
	}
	p, err := e.prospect(ctx, network, labels, known)
	return p.Endpoints, err
}

// prospect looks at the endpoints of sandboxes, by name or id, or of all. Its
// error is [berth.ErrNotFound] if there is no such network.
func (e *Engine) prospect(ctx context.Context, network string, labels map[string]string, sandboxes []string) (p Prospect, err error) {
	err = e.store.View(ctx, func(tx *store.Tx) (err error) {
		if p.Network, err = networkOf(tx, network); err != nil {
			return err
		}
		p.Vacant = tx.Vacant(p.Network.ID)
		if len(sandboxes) == 0 {
			p.Endpoints, err = tx.EndpointsOn(p.Network.ID)
			return err
		}
		seen := map[string]bool{}
		for _, ref := range sandboxes {
			sb, err := tx.SandboxByName(ref)
			if errors.Is(err, berth.ErrNotFound) {
				sb, err = tx.Sandbox(ref)
			}
			if ignore(err, berth.ErrNotFound) != nil {
				return err
			}
			if err != nil || seen[sb.ID] {
				continue
			}
			seen[sb.ID] = true
			eps, err := tx.EndpointsOf(sb.ID)
			if err != nil {
				return err
			}
			p.Endpoints = append(p.Endpoints, eps...)
		}
		return nil
	})
	if err != nil {
		return Prospect{}, fmt.Errorf("network %s: %w", cut(network), err)
	}
	p.Endpoints = slices.DeleteFunc(p.Endpoints, func(ep berth.Endpoint) bool {
		return ep.Network != p.Network.ID || !carries(ep.Labels, labels)
	})
	return p, nil
}

func carries(have, want map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

// LabelEndpoint sets labels of an endpoint. An empty value takes one away.
func (e *Engine) LabelEndpoint(ctx context.Context, ep berth.Endpoint, labels map[string]string) error {
	err := e.store.Update(ctx, func(tx *store.Tx) error {
		now, err := tx.Endpoint(ep.Sandbox, ep.Interface)
		if err != nil {
			return err
		}
		if now.ID != ep.ID || now.Leaving {
			return fmt.Errorf("it was disconnected meanwhile: %w", berth.ErrNotFound)
		}
		n, err := tx.Network(now.Network)
		if err != nil {
			return err
		}
		now.Labels = maps.Clone(now.Labels)
		if now.Labels == nil {
			now.Labels = map[string]string{}
		}
		maps.Copy(now.Labels, labels)
		maps.DeleteFunc(now.Labels, func(_, v string) bool { return v == "" })
		return tx.PutEndpoint(now, scope(n))
	})
	if err != nil {
		return fmt.Errorf("label endpoint %s: %w", short(ep.ID), err)
	}
	return nil
}

// A HostLink is a link on the host as it is.
type HostLink struct {
	Name string
	MAC  berth.MAC
	MTU  int
}

// A HostSide is what of an endpoint is outside of it.
type HostSide struct {
	Bridge HostLink // none for a link network
	End    HostLink // the host's end of the pair; none without one
	// Turnstile is what the endpoint's own packets pass if they have a limit.
	Turnstile HostLink
	// Gateways are where the default routes lead that the endpoint gives its
	// sandbox, one for each family.
	Gateways []netip.Addr
}

// HostSide tells what of an endpoint is outside of it, as the kernel has it.
func (e *Engine) HostSide(ctx context.Context, ep berth.Endpoint) (HostSide, error) {
	var side HostSide
	var n berth.Network
	err := e.store.View(ctx, func(tx *store.Tx) (err error) {
		if n, err = tx.Network(ep.Network); err != nil {
			return err
		}
		atts, err := attachments(tx, ep.Sandbox)
		for _, v4 := range []bool{true, false} {
			from, ok := plan.DefaultEndpoint(atts, v4)
			addr := ep.Addr6()
			if v4 {
				addr = ep.Addr4()
			}
			if gw, has := n.Gateway(addr); ok && has && from.ID == ep.ID {
				side.Gateways = append(side.Gateways, gw)
			}
		}
		return err
	})
	if err == nil && n.Bridge != "" {
		side.Bridge, err = e.hostLink(n.Bridge)
	}
	if err == nil && n.HostEnd {
		end := plan.HostEnd(ep.ID)
		if ep.Found {
			end = ep.Link
		}
		side.End, err = e.hostLink(end)
	}
	if err == nil && ep.Rates.Out.Bits != 0 {
		side.Turnstile, err = e.hostLink(plan.TurnstileOf(ep.ID))
	}
	if err != nil {
		return side, fmt.Errorf("host side of endpoint %s: %w", short(ep.ID), err)
	}
	return side, nil
}

func (e *Engine) hostLink(name string) (HostLink, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	l, err := e.kernel.Link(plan.Host, name)
	return HostLink{Name: name, MAC: l.MAC, MTU: l.MTU}, err
}

// Room returns nil if one more sandbox can be connected to a network, with
// addresses of some ranges if there are any of a family, and an error that
// matches [berth.ErrExhausted] if not.
func (e *Engine) Room(ctx context.Context, network string, within ...AddrRange) error {
	a := admission{e: e, o: ConnectOptions{Within: within}}
	err := e.store.View(ctx, func(tx *store.Tx) error {
		n, err := networkOf(tx, network)
		if err != nil {
			return err
		}
		on, err := tx.EndpointsOn(n.ID)
		if err != nil {
			return err
		}
		if len(on) >= maxPorts && n.Driver == berth.Bridge {
			return a.exhausted(tx, n, fmt.Errorf("a bridge has %d ports, and all are taken: %w", maxPorts, berth.ErrExhausted))
		}
		for _, v4 := range []bool{true, false} {
			full := error(nil)
			for _, c := range a.choices(familyOf(n, v4), v4) {
				_, full = ipam.NextAddrIn(c.subnet, c.within.First, c.within.Last, netip.Addr{}, takenOn(tx, n))
				if full == nil {
					break
				}
			}
			if full != nil {
				return a.exhausted(tx, n, full)
			}
		}
		return nil
	})
	if dead := (*deadOwners)(nil); errors.As(err, &dead) {
		return nil // their namespaces are gone: whoever connects takes their place
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", cut(network), err)
	}
	return nil
}

// familyOf are the subnets of one family.
func familyOf(n berth.Network, v4 bool) (subs []berth.Subnet) {
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is4() == v4 {
			subs = append(subs, s)
		}
	}
	return subs
}

// maxPorts is how many ports a bridge of Linux has (BR_MAX_PORTS, of which
// number 0 is not one).
const maxPorts = 1023

// CheckSandbox is Check for one sandbox: what it needs, in it and on the host,
// and its networks.
func (e *Engine) CheckSandbox(ctx context.Context, ref string) (Report, error) {
	sb, err := e.recorded(ctx, ref)
	if err != nil {
		return Report{}, fmt.Errorf("check sandbox %s: %w", cut(ref), err)
	}
	return e.checkParts(ctx, func(tx *store.Tx) (touch, []berth.Port, error) {
		t := touch{base: true, sandboxes: []string{sb.ID}}
		eps, err := tx.EndpointsOf(sb.ID)
		if err != nil {
			return t, nil, err
		}
		for _, ep := range eps {
			if !slices.Contains(t.networks, ep.Network) {
				t.networks = append(t.networks, ep.Network)
			}
		}
		ports, err := tx.PortsOf(sb.ID)
		return t, ports, err
	}, sb)
}

// CheckNetwork is Check for a network without its endpoints.
func (e *Engine) CheckNetwork(ctx context.Context, ref string) (Report, error) {
	n, err := e.network(ctx, ref)
	if err != nil {
		return Report{}, fmt.Errorf("check network %s: %w", cut(ref), err)
	}
	return e.checkParts(ctx, func(*store.Tx) (touch, []berth.Port, error) {
		return touch{base: true, networks: []string{n.ID}}, nil, nil
	})
}

// checkParts compares some parts of the plan with the kernel. What else is on
// the host is not its business; in the sandboxes it is.
func (e *Engine) checkParts(ctx context.Context, parts func(*store.Tx) (touch, []berth.Port, error), sbs ...berth.Sandbox) (Report, error) {
	var t touch
	var want plan.State
	read := func(tx *store.Tx) error {
		var ports []berth.Port
		var err error
		if t, ports, err = parts(tx); err == nil {
			want, err = t.state(tx, ports)
		}
		return err
	}
	if err := e.store.View(ctx, read); err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	locks := []lock{{kind: store.LockHost}, {store.LockNetwork, baseLock.id, false}}
	for _, id := range t.networks {
		locks = append(locks, lock{store.LockNetwork, id, false})
	}
	for _, id := range t.sandboxes {
		locks = append(locks, lock{store.LockSandbox, id, false})
	}
	unlock, err := e.lock(ctx, locks)
	if err != nil {
		return Report{}, err
	}
	defer unlock()
	if err := e.store.View(ctx, read); err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	d, err := e.compareParts(ctx, want)
	if err != nil {
		return Report{}, fmt.Errorf("check: %w", err)
	}
	w := world{sandboxes: map[string]berth.Sandbox{}}
	for _, sb := range sbs {
		w.sandboxes[sb.ID] = sb
	}
	return e.report(w, d), nil
}

func (e *Engine) compareParts(ctx context.Context, want plan.State) (plan.Delta, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer e.kernel.Release()
	if _, err := e.table(); err != nil {
		return plan.Delta{}, err
	}
	have, err := e.kernel.Read(ctx, places(plan.Delta{Put: want}), slices.Collect(maps.Keys(want.Sysctls)))
	if err != nil {
		return plan.Delta{}, err
	}
	maps.DeleteFunc(have.Links, func(k plan.LinkKey, _ plan.Link) bool { return others(k.Place, k, want.Links) })
	maps.DeleteFunc(have.Addrs, func(k plan.AddrKey, _ plan.Addr) bool { return others(k.Link.Place, k, want.Addrs) })
	maps.DeleteFunc(have.Routes, func(k plan.RouteKey, _ plan.Route) bool { return others(k.Place, k, want.Routes) })
	maps.DeleteFunc(have.Shapes, func(k plan.LinkKey, _ plan.Shape) bool { return others(k.Place, k, want.Shapes) })
	maps.DeleteFunc(have.Elems, func(k plan.ElemKey, _ plan.Elem) bool { return others(plan.Host, k, want.Elems) })
	maps.DeleteFunc(want.Sysctls, func(k plan.SysctlKey, v string) bool {
		_, there := have.Sysctls[k]
		return !there && plan.BelievesRA(k, v) // uplinks come and go
	})
	return plan.Diff(have, want), nil
}

// others reports whether an object of the host is of another part.
func others[K comparable, V any](p plan.Place, k K, want map[K]V) bool {
	_, ok := want[k]
	return p == plan.Host && !ok
}
