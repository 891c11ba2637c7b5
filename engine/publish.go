package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"

	"berth"
	"berth/internal/kernel"
	"berth/internal/plan"
	"berth/internal/store"
)

// Publish lets ports of the host lead to a running sandbox, all or none, in
// one transaction. A port without a host address is published for every family
// the endpoint has. Its errors match [berth.ErrConflict], and name the owner,
// for a port that belongs to another sandbox or to a process of the host.
func (e *Engine) Publish(ctx context.Context, sandbox string, specs []berth.PortSpec, o PublishOptions) ([]berth.Port, error) {
	ports, err := e.publish(ctx, sandbox, specs, o)
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", cut(sandbox), err)
	}
	return ports, nil
}

func (e *Engine) publish(ctx context.Context, sandbox string, specs []berth.PortSpec, o PublishOptions) ([]berth.Port, error) {
	sb, ns, err := e.find(ctx, sandbox)
	if err != nil {
		return nil, err
	}
	ns.Close()
	p := publication{e: e, sb: sb, specs: specs, o: o}
	locks := func() ([]lock, error) { return p.locks(ctx) }
	looked := e.o.DryRun
	err = e.do(ctx, locks, func(ctx context.Context) error {
		if err := p.look(); err != nil {
			return err
		}
		err := e.commit(ctx, p.admit, p.forget)
		if err == nil && p.stood && !looked {
			// As with what is refused: that a port is published must be true.
			looked = true
			if whole, err := e.whole(ctx, sb.ID); err == nil && !whole {
				return errHeal
			}
		}
		return err
	})
	return p.ports, err
}

// A publication decides which ports are published and where they lead.
type publication struct {
	e     *Engine
	sb    berth.Sandbox
	specs []berth.PortSpec
	o     PublishOptions

	listeners listeners
	low, high uint16
	reserved  func(uint16) bool
	locked    map[string]bool // sandboxes and networks that are locked

	ep       berth.Endpoint
	network  berth.Network
	ports    []berth.Port // now published
	replaced []berth.Port // and no longer
	stood    bool         // some were published already, just so
	chosen   map[berth.PortKey]bool
	beside   map[berth.PortKey]bool // chosen, taken for any host address
}

// locks are the sandbox, its networks (route_localnet depends on whether any
// port is published), and with Replace the sandboxes that lose a port.
func (p *publication) locks(ctx context.Context) ([]lock, error) {
	ls := []lock{{store.LockSandbox, p.sb.ID, true}}
	p.locked = map[string]bool{}
	err := p.e.store.View(ctx, func(tx *store.Tx) error {
		eps, err := tx.EndpointsOf(p.sb.ID)
		if err != nil {
			return err
		}
		for _, ep := range eps {
			ls = append(ls, lock{store.LockNetwork, ep.Network, true})
		}
		if !p.o.Replace {
			return nil
		}
		for _, s := range p.specs {
			if s.HostLow == 0 {
				continue
			}
			old, err := tx.PortsAt(s.Protocol, s.HostLow)
			if err != nil {
				return err
			}
			for _, o := range old {
				ls = append(ls, lock{store.LockNetwork, o.Network, true}, lock{store.LockSandbox, o.Sandbox, true})
			}
		}
		return nil
	})
	for _, l := range ls {
		p.locked[l.id] = true
	}
	return ls, err
}

// look reads what of the host decides over ports.
func (p *publication) look() (err error) {
	var protocols []berth.Protocol
	random := false
	for _, s := range p.specs {
		random = random || s.HostLow == 0
		if !slices.Contains(protocols, s.Protocol) {
			protocols = append(protocols, s.Protocol)
		}
	}
	if p.listeners, err = p.e.listening(protocols...); err != nil || !random {
		return err
	}
	low, high, reserved, err := p.e.kernel.EphemeralPorts()
	if err != nil {
		return err
	}
	p.low, p.high = low, high
	p.reserved = func(port uint16) bool {
		return slices.ContainsFunc(reserved, func(r kernel.PortRange) bool { return r.Low <= port && port <= r.High })
	}
	return nil
}

// admit records the ports and returns what they change.
func (p *publication) admit(tx *store.Tx) (plan.Delta, error) {
	var d plan.Delta
	p.ports, p.replaced = nil, nil
	p.chosen, p.beside = map[berth.PortKey]bool{}, map[berth.PortKey]bool{}
	if err := p.target(tx); err != nil {
		return d, err
	}
	var wanted []berth.Port
	for _, s := range p.specs {
		ports, err := p.admitSpec(tx, s)
		if err != nil {
			return d, err
		}
		wanted = append(wanted, ports...)
	}
	nets := []string{p.network.ID}
	sbs := []string{}
	for _, o := range p.replaced {
		nets, sbs = append(nets, o.Network), append(sbs, o.Sandbox)
	}
	if p.network.Driver == berth.Link {
		sbs = append(sbs, p.sb.ID)
	}
	slices.Sort(nets)
	slices.Sort(sbs)
	t := touch{networks: slices.Compact(nets), sandboxes: slices.Compact(sbs)}
	d, err := t.around(tx, func() error {
		for _, o := range p.replaced {
			if err := tx.DeletePort(o.PortKey); err != nil {
				return err
			}
		}
		for _, n := range wanted {
			if err := tx.PutPort(n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return d, err
	}
	before, after, err := p.elements(tx, wanted)
	p.ports = append(p.ports, wanted...)
	d = join(d, plan.Diff(before, after))
	d.Cut = p.o.Cut
	return d, err
}

// elements are the plans of the ports that go and of those that come.
func (p *publication) elements(tx *store.Tx, wanted []berth.Port) (before, after plan.State, err error) {
	for _, o := range p.replaced {
		who, err := tx.Sandbox(o.Sandbox)
		if ignore(err, berth.ErrNotFound) != nil {
			return before, after, err
		}
		before.Add(plan.Port(o, who.Name))
	}
	for _, n := range wanted {
		after.Add(plan.Port(n, p.sb.Name))
	}
	return before, after, nil
}

// join merges two Deltas of different objects.
func join(a, b plan.Delta) plan.Delta {
	a.Put.Add(b.Put)
	a.Drop.Add(b.Drop)
	return a
}

// target finds the endpoint that the ports lead to.
func (p *publication) target(tx *store.Tx) error {
	atts, err := attachments(tx, p.sb.ID)
	if err != nil {
		return err
	}
	if len(atts) == 0 {
		return fmt.Errorf("it is connected to no network: %w", berth.ErrInvalid)
	}
	if p.o.Network != "" {
		return p.targetOn(tx, atts)
	}
	ep, ok := plan.DefaultEndpoint(atts, true)
	if !ok {
		ep, ok = plan.DefaultEndpoint(atts, false)
	}
	if !ok {
		return fmt.Errorf("it is only on networks without a way in (internal, or without the host): %w", berth.ErrInvalid)
	}
	p.ep = ep
	p.network, err = tx.Network(ep.Network)
	return err
}

func (p *publication) targetOn(tx *store.Tx, atts []plan.Attachment) error {
	n, err := tx.Network(p.o.Network)
	if err != nil {
		return err
	}
	if n.Internal || !n.HostEnd {
		return fmt.Errorf("network %s has no way in (internal, or without the host): %w", n.Name, berth.ErrInvalid)
	}
	for _, a := range atts {
		if a.Network.ID == n.ID && !a.Endpoint.Leaving {
			p.ep, p.network = a.Endpoint, n
			return nil
		}
	}
	return fmt.Errorf("it is not connected to network %s: %w", n.Name, berth.ErrNotFound)
}

// admitSpec turns one spec into ports, one for each family.
func (p *publication) admitSpec(tx *store.Tx, s berth.PortSpec) ([]berth.Port, error) {
	hosts, err := p.hosts(s)
	if err != nil {
		return nil, err
	}
	if s.HostLow != 0 && s.HostLow == s.HostHigh {
		return p.take(tx, s, hosts, s.HostLow, nil)
	}
	low, high := s.HostLow, s.HostHigh
	random := low == 0
	if random {
		low, high = p.low, p.high
	}
	var last error
	size := int(high) - int(low) + 1
	start := 0
	if random {
		start = rand.IntN(size)
	}
	for i := range size {
		port := low + uint16((start+i)%size)
		if random && p.reserved(port) {
			continue
		}
		ports, err := p.take(tx, s, hosts, port, &last)
		if err != nil || ports != nil {
			return ports, err
		}
	}
	return nil, fmt.Errorf("no port of %d-%d/%s is free (the last: %v): %w", low, high, s.Protocol, last, berth.ErrExhausted)
}

// hosts are the host addresses of a spec.
func (p *publication) hosts(s berth.PortSpec) ([]netip.Addr, error) {
	a4, a6 := p.ep.Addr4(), p.ep.Addr6()
	if !s.HostIP.IsValid() {
		var out []netip.Addr
		if a4.IsValid() {
			out = append(out, netip.IPv4Unspecified())
		}
		if a6.IsValid() {
			out = append(out, netip.IPv6Unspecified())
		}
		return out, nil
	}
	ip := s.HostIP.Unmap()
	if ip.Is4() && !a4.IsValid() || ip.Is6() && !a6.IsValid() {
		return nil, fmt.Errorf("host address %s: the sandbox has no address of that family on network %s: %w", ip, p.network.Name, berth.ErrInvalid)
	}
	return []netip.Addr{ip}, p.e.ownAddress(ip)
}

// ownAddress refuses an address that the host has not.
func (e *Engine) ownAddress(ip netip.Addr) error {
	if ip.IsUnspecified() {
		return nil
	}
	if ip.Zone() != "" || ip.IsMulticast() {
		return fmt.Errorf("host address %s: a port needs an address without a zone, of one host: %w", ip, berth.ErrInvalid)
	}
	return e.host.Do(func() error {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
		if err != nil {
			return fmt.Errorf("host address %s: the host does not have it: %w", ip, berth.ErrInvalid)
		}
		return c.Close()
	})
}

// take takes one host port at all hosts. A conflict is an error, or where busy
// is given, goes there.
func (p *publication) take(tx *store.Tx, s berth.PortSpec, hosts []netip.Addr, port uint16, busy *error) ([]berth.Port, error) {
	var out, replaced []berth.Port
	for _, ip := range hosts {
		to := p.ep.Addr4()
		if ip.Is6() {
			to = p.ep.Addr6()
		}
		n := berth.Port{
			PortKey: berth.PortKey{Protocol: s.Protocol, HostIP: ip, HostPort: port},
			Sandbox: p.sb.ID, Network: p.network.ID, Interface: p.ep.Interface, To: netip.AddrPortFrom(to, s.Port),
		}
		same, old, err := p.free(tx, n)
		if busy != nil && (errors.Is(err, berth.ErrConflict) || errors.Is(err, errTwice) || errors.Is(err, errAgain) || same || len(old) > 0) {
			if *busy = err; err == nil || errors.Is(err, errAgain) {
				*busy = fmt.Errorf("port %s is published", portName(n.PortKey))
			}
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		if same {
			p.ports, p.stood = append(p.ports, n), true
			continue
		}
		out, replaced = append(out, n), append(replaced, old...)
	}
	for _, n := range out {
		p.chosen[n.PortKey] = true
		p.beside[anyHost(n.PortKey)] = true
	}
	p.replaced = append(p.replaced, replaced...)
	if out == nil {
		out = []berth.Port{}
	}
	return out, nil
}

var errTwice = fmt.Errorf("asked for twice: %w", berth.ErrInvalid)

// free reports whether a port may be published: free, published as it is
// already (same), or to be taken over (old).
func (p *publication) free(tx *store.Tx, n berth.Port) (same bool, old []berth.Port, err error) {
	if p.chosen[n.PortKey] || p.chosen[anyHost(n.PortKey)] || n.HostIP.IsUnspecified() && p.beside[n.PortKey] {
		return false, nil, fmt.Errorf("port %s is %w", portName(n.PortKey), errTwice)
	}
	at, err := tx.PortsAt(n.Protocol, n.HostPort)
	if err != nil {
		return false, nil, err
	}
	for _, o := range at {
		if !overlap(o.HostIP, n.HostIP) {
			continue
		}
		if o == n {
			return true, nil, nil
		}
		owner, err := tx.Sandbox(o.Sandbox)
		if ignore(err, berth.ErrNotFound) != nil {
			return false, nil, err
		}
		if err == nil && !alive(owner) {
			return false, nil, &deadOwners{[]string{owner.ID}}
		}
		if !p.o.Replace {
			return false, nil, fmt.Errorf("port %s is published by sandbox %s (to %s): %w", portName(o.PortKey), owner.Name, o.To, berth.ErrConflict)
		}
		if !p.locked[o.Sandbox] || !p.locked[o.Network] {
			return false, nil, errAgain
		}
		old = append(old, o)
	}
	if l, ok := p.listeners.at(n.PortKey); ok && len(old) == 0 {
		return false, nil, fmt.Errorf("port %s is in use on the host%s: %w", portName(n.PortKey), l.who(), berth.ErrConflict)
	}
	return false, old, nil
}

// anyHost is the key of the same port at every host address of its family.
func anyHost(k berth.PortKey) berth.PortKey {
	if k.HostIP.Is4() {
		k.HostIP = netip.IPv4Unspecified()
	} else {
		k.HostIP = netip.IPv6Unspecified()
	}
	return k
}

// overlap reports whether one packet could be meant for both host addresses.
func overlap(a, b netip.Addr) bool {
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// forget takes the ports back and gives the replaced ones to their owners.
func (p *publication) forget(tx *store.Tx) error {
	for _, n := range p.ports {
		if p.chosen[n.PortKey] {
			if err := tx.DeletePort(n.PortKey); err != nil {
				return err
			}
		}
	}
	for _, o := range p.replaced {
		if err := tx.PutPort(o); err != nil {
			return err
		}
	}
	return nil
}

// portName is a port as people write it: 0.0.0.0:8080/tcp.
func portName(k berth.PortKey) string {
	return netip.AddrPortFrom(k.HostIP, k.HostPort).String() + "/" + string(k.Protocol)
}
