package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"berth"
	"berth/internal/ipam"
	"berth/internal/kernel"
	"berth/internal/plan"
	"berth/internal/store"
)

// Connect connects a sandbox to a network. The sandbox is a name, a name in
// /run/netns, "path:PATH" or "pid:N". Its errors match [berth.ErrConflict] for
// an address that is taken, [berth.ErrExists] for an interface or endpoint that
// is there, [berth.ErrExhausted] when the network is full.
func (e *Engine) Connect(ctx context.Context, network, sandbox string, o ConnectOptions) (berth.Endpoint, error) {
	ep, err := e.connect(ctx, network, sandbox, o)
	if err != nil {
		return ep, fmt.Errorf("connect %s to %s: %w", cut(sandbox), cut(network), err)
	}
	return ep, nil
}

func (e *Engine) connect(ctx context.Context, network, sandbox string, o ConnectOptions) (ep berth.Endpoint, err error) {
	if o.Interface != "" && (!validLinkName(o.Interface) || o.Interface == "lo") {
		return ep, fmt.Errorf("interface %q: a link's name has 1 to 15 characters, no space, slash or colon, and is not lo: %w", cut(o.Interface), berth.ErrInvalid)
	}
	if err := o.Rates.Check(); err != nil {
		return ep, err
	}
	n, err := e.network(ctx, network)
	if err != nil {
		return ep, err
	}
	sb, ns, err := e.find(ctx, sandbox)
	if err != nil {
		return ep, err
	}
	defer e.hold(sb, ns)()
	locks := func() ([]lock, error) {
		ls := []lock{{store.LockNetwork, n.ID, n.Driver == berth.Link}, {store.LockSandbox, sb.ID, true}}
		return e.withOthers(ctx, ls, n, sb.ID)
	}
	err = e.do(ctx, locks, func(ctx context.Context) error {
		present, err := e.kernel.LinkNames(plan.Place(sb.ID))
		if err != nil {
			return err
		}
		a := admission{e: e, sb: sb, o: o, present: present}
		if o.Found {
			if err := a.find(n); err != nil {
				return err
			}
		}
		err = e.commit(ctx, func(tx *store.Tx) (plan.Delta, error) {
			return a.admit(tx, n.ID)
		}, func(tx *store.Tx) error {
			return a.forget(tx)
		})
		ep = a.ep
		return err
	})
	return ep, err
}

// withOthers adds the locks of the sandboxes at the other end of a wire: their
// side of it changes too.
func (e *Engine) withOthers(ctx context.Context, ls []lock, n berth.Network, self string) ([]lock, error) {
	if n.HostEnd {
		return ls, nil
	}
	err := e.store.View(ctx, func(tx *store.Tx) error {
		eps, err := tx.EndpointsOn(n.ID)
		for _, ep := range eps {
			if ep.Sandbox != self {
				ls = append(ls, lock{store.LockSandbox, ep.Sandbox, true})
			}
		}
		return err
	})
	return ls, err
}

// An admission decides whether and how a sandbox may be connected.
type admission struct {
	e       *Engine
	sb      berth.Sandbox
	o       ConnectOptions
	present map[string]bool // names of the links in the sandbox

	// What others have made, if it is to be recorded only.
	found   kernel.LinkInfo
	hostEnd string

	ep berth.Endpoint
}

// admit records the endpoint and returns what it changes.
func (a *admission) admit(tx *store.Tx, network string) (plan.Delta, error) {
	var d plan.Delta
	n, err := tx.Network(network)
	if err != nil {
		return d, err
	}
	on, err := a.others(tx, n)
	if err != nil {
		return d, err
	}
	t := touch{sandboxes: []string{a.sb.ID}}
	for _, o := range on {
		t.sandboxes = append(t.sandboxes, o.Sandbox)
	}
	return t.around(tx, func() error {
		if err := a.recordSandbox(tx); err != nil {
			return err
		}
		if err := a.endpoint(tx, n); err != nil {
			return err
		}
		return tx.PutEndpoint(a.ep, scope(n))
	})
}

// others returns the endpoints at the other end of a link, and refuses a link
// that is full.
func (a *admission) others(tx *store.Tx, n berth.Network) ([]berth.Endpoint, error) {
	if n.Driver != berth.Link {
		return nil, nil
	}
	on, err := tx.EndpointsOn(n.ID)
	if err != nil {
		return nil, err
	}
	room := 1
	if !n.HostEnd {
		room = 2
	}
	for _, ep := range on {
		owner, err := tx.Sandbox(ep.Sandbox)
		if err != nil {
			return nil, err
		}
		if ep.Leaving {
			return nil, errHeal
		}
		if !alive(owner) {
			return nil, &deadOwners{[]string{ep.Sandbox}}
		}
		if ep.Sandbox == a.sb.ID {
			return nil, fmt.Errorf("it is connected already (%s): %w", ep.Interface, berth.ErrExists)
		}
	}
	if len(on) >= room {
		return nil, fmt.Errorf("a link has two ends, and both are taken: use a bridge network for more: %w", berth.ErrExhausted)
	}
	if n.HostEnd {
		return nil, nil
	}
	return on, nil
}

// recordSandbox records a sandbox that is met for the first time, and the way
// by which it is found now.
func (a *admission) recordSandbox(tx *store.Tx) error {
	known, err := tx.Sandbox(a.sb.ID)
	if err == nil && known.Path == a.sb.Path {
		return nil
	}
	if err == nil {
		known.Path = a.sb.Path
		return tx.PutSandbox(known)
	}
	if !errors.Is(err, berth.ErrNotFound) {
		return err
	}
	old, err := tx.SandboxByName(cmp.Or(a.o.Sandbox, a.sb.Name))
	if err == nil && old.ID != a.sb.ID {
		if alive(old) && a.o.Sandbox != "" {
			a.o.Sandbox = "" // somebody else is called so
			return a.recordSandbox(tx)
		}
		if alive(old) {
			return fmt.Errorf("another namespace is known by that name (%s): %w", old.Path, berth.ErrConflict)
		}
		return &deadOwners{[]string{old.ID}}
	}
	if ignore(err, berth.ErrNotFound) != nil {
		return err
	}
	if berth.ValidName("sandbox", a.o.Sandbox) == nil {
		a.sb.Name = a.o.Sandbox
	}
	return tx.PutSandbox(a.sb)
}

// endpoint fills in a.ep: number, interface, addresses, MAC.
func (a *admission) endpoint(tx *store.Tx, n berth.Network) error {
	eps, err := tx.EndpointsOf(a.sb.ID)
	if err != nil {
		return err
	}
	a.ep = berth.Endpoint{
		ID: randomID(), Network: n.ID, Sandbox: a.sb.ID, Created: time.Now().UTC(),
		MAC: a.o.MAC, Aliases: a.o.Aliases, GwPriority: a.o.GwPriority, Labels: a.o.Labels, Rates: a.o.Rates,
	}
	if err := a.place(eps, n); err != nil {
		return err
	}
	if a.o.Found {
		a.ep.Found, a.ep.Link, a.ep.MAC = true, a.hostEnd, a.found.MAC
	}
	if err := limitable(n, a.ep); err != nil {
		return err
	}
	for _, v4 := range []bool{true, false} {
		if err := a.address(tx, n, v4); err != nil {
			return err
		}
	}
	if a.o.Found && len(a.ep.Addrs) == 0 && n.Routed() { // else it is there for its limits
		return fmt.Errorf("interface %s has no address of network %s (%s): %w", a.o.Interface, n.Name, prefixes(n.Subnets), berth.ErrInvalid)
	}
	if a.ep.MAC == (berth.MAC{}) {
		seed := a.ep.Addr4()
		if !seed.IsValid() {
			seed = a.ep.Addr6()
		}
		a.ep.MAC = ipam.MAC(n.ID, seed)
	}
	return nil
}

// place chooses the endpoint's interface and its number in the sandbox.
func (a *admission) place(eps []berth.Endpoint, n berth.Network) error {
	slots := map[int]bool{}
	for _, ep := range eps {
		slots[ep.Slot] = true
		if ep.Leaving {
			return errHeal // a crash left it half way
		}
		if ep.Network == n.ID && a.o.Interface == "" {
			return fmt.Errorf("it is connected already (%s); for a second endpoint give --interface: %w", ep.Interface, berth.ErrExists)
		}
		if ep.Interface == a.o.Interface {
			return fmt.Errorf("interface %s is an endpoint already: %w", ep.Interface, berth.ErrExists)
		}
	}
	for slots[a.ep.Slot] {
		a.ep.Slot++
	}
	a.ep.Interface = a.o.Interface
	if a.o.Interface != "" {
		if a.present[a.o.Interface] && !a.o.Found {
			return fmt.Errorf("there is a link %s in the sandbox: %w", a.o.Interface, berth.ErrExists)
		}
		return nil
	}
	used := func(name string) bool {
		return a.present[name] || slices.ContainsFunc(eps, func(ep berth.Endpoint) bool { return ep.Interface == name })
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("eth%d", i); !used(name) {
			a.ep.Interface = name
			return nil
		}
	}
}

// address gives the endpoint an address of one family, if its network has it.
func (a *admission) address(tx *store.Tx, n berth.Network, v4 bool) error {
	want := a.o.IP6
	if v4 {
		want = a.o.IP4
	}
	subs := familyOf(n, v4)
	if a.o.Found {
		if want = a.foundIn(subs); !want.IsValid() {
			return nil
		}
	}
	if len(subs) == 0 {
		if want.IsValid() {
			return fmt.Errorf("address %s: network %s has no subnet of that family: %w", want, n.Name, berth.ErrInvalid)
		}
		return nil
	}
	if want.IsValid() {
		return a.fixed(tx, n, subs, want)
	}
	choices := a.choices(subs, v4)
	if len(choices) == 0 {
		return fmt.Errorf("no range asked for is in a subnet of network %s (%s): %w", n.Name, prefixes(subs), berth.ErrInvalid)
	}
	var full error
	for _, c := range choices {
		s := c.subnet
		addr, err := a.next(tx, n, c)
		if errors.Is(err, berth.ErrExhausted) {
			full = err
			continue
		}
		if err != nil {
			return err
		}
		a.ep.Addrs = append(a.ep.Addrs, netip.PrefixFrom(addr, s.Prefix.Bits()))
		return nil
	}
	return a.exhausted(tx, n, full)
}

// A choice is a subnet, and which of its addresses may be taken; the zero range
// is what the subnet says.
type choice struct {
	subnet berth.Subnet
	within AddrRange
}

// choices are where an address of a family may come from, in order.
func (a *admission) choices(subs []berth.Subnet, v4 bool) (out []choice) {
	for _, r := range a.o.Within {
		for _, s := range subs {
			if r.First.Is4() == v4 && s.Prefix.Contains(r.First) {
				out = append(out, choice{s, r})
			}
		}
	}
	if slices.ContainsFunc(a.o.Within, func(r AddrRange) bool { return r.First.Is4() == v4 }) {
		return out
	}
	for _, s := range subs {
		out = append(out, choice{subnet: s})
	}
	return out
}

// next is a preferred address of a choice, or the next free one.
func (a *admission) next(tx *store.Tx, n berth.Network, c choice) (netip.Addr, error) {
	taken := takenOn(tx, n)
	for _, addr := range a.o.Prefer {
		if ipam.CheckAddr(c.subnet, addr) == nil && !taken(addr) {
			return addr, nil
		}
	}
	after, err := tx.Cursor(n.ID, c.subnet.Prefix)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := ipam.NextAddrIn(c.subnet, c.within.First, c.within.Last, after, taken)
	if err != nil {
		return addr, err
	}
	return addr, tx.SetCursor(n.ID, c.subnet.Prefix, addr)
}

// takenOn reports which addresses somebody has whom the network meets.
func takenOn(tx *store.Tx, n berth.Network) func(netip.Addr) bool {
	return func(addr netip.Addr) bool {
		_, taken := tx.Taken(scope(n), addr)
		return taken || slices.ContainsFunc(n.ForeignAddrs, func(p netip.Prefix) bool { return p.Addr() == addr })
	}
}

// exhausted looks for sandboxes whose namespace is gone before it says that a
// network is full.
func (a *admission) exhausted(tx *store.Tx, n berth.Network, full error) error {
	eps, err := tx.EndpointsOn(n.ID)
	if err != nil {
		return err
	}
	var dead []string
	for _, ep := range eps {
		sb, err := tx.Sandbox(ep.Sandbox)
		if err == nil && !alive(sb) {
			dead = append(dead, sb.ID)
		}
	}
	if len(dead) > 0 {
		return &deadOwners{dead}
	}
	return full
}

// fixed gives the endpoint the address that was asked for.
func (a *admission) fixed(tx *store.Tx, n berth.Network, subs []berth.Subnet, want netip.Addr) error {
	for _, s := range subs {
		if !s.Prefix.Contains(want) {
			continue
		}
		if err := ipam.CheckAddr(s, want); err != nil {
			return err
		}
		owner, taken := tx.Taken(scope(n), want)
		if !taken {
			a.ep.Addrs = append(a.ep.Addrs, netip.PrefixFrom(want, s.Prefix.Bits()))
			return nil
		}
		sb, err := tx.Sandbox(owner.Sandbox)
		if err != nil {
			return err
		}
		if !alive(sb) {
			return &deadOwners{[]string{sb.ID}}
		}
		return fmt.Errorf("address %s belongs to sandbox %s: %w", want, sb.Name, berth.ErrConflict)
	}
	return fmt.Errorf("address %s is in no subnet of network %s (%s): %w", want, n.Name, prefixes(subs), berth.ErrInvalid)
}

func prefixes(subs []berth.Subnet) string {
	var s string
	for i, sub := range subs {
		if i > 0 {
			s += ", "
		}
		s += sub.Prefix.String()
	}
	return s
}

// forget takes the endpoint back: it is leaving until the kernel is clean.
func (a *admission) forget(tx *store.Tx) error { return retire(tx, a.ep) }
