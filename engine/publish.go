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
	err = e.do(ctx, locks, func(ctx context.Context) error {
		if err := p.look(); err != nil {
			return err
		}
		err := e.commit(ctx, p.admit, p.forget)
		if err == nil && len(p.ports) > len(p.chosen) && !e.o.DryRun {
			// As with what is refused: that a port is published must be true.
			if whole, err := e.whole(ctx, sb.ID); err == nil && !whole {
				return errDoubt
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
	ports    []berth.Port                 // published as is asked for, by now
	chosen   []berth.Port                 // those of them that were not before
	replaced []berth.Port                 // and no longer published
	taken    map[listenerKey][]netip.Addr // the host addresses of chosen
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
	p.chosen = make([]berth.Port, 0, 2*len(p.specs)) // of two families
	p.taken = make(map[listenerKey][]netip.Addr, len(p.specs))
	if err := p.target(tx); err != nil {
		return d, err
	}
	for _, s := range p.specs {
		if err := p.admitSpec(tx, s); err != nil {
			return d, err
		}
	}
	p.ports = append(p.ports, p.chosen...)
	t, err := touching(tx, p.replaced, p.chosen)
	if err != nil {
		return d, err
	}
	d, err = t.around(tx, func() error {
		if err := tx.DeletePorts(p.replaced...); err != nil {
			return err
		}
		return tx.PutPorts(p.chosen...)
	})
	d.Cut = p.o.Cut
	return d, err
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
	ways := slices.DeleteFunc(atts, func(a plan.Attachment) bool { return !wayIn(a.Network) || a.Endpoint.Leaving })
	if len(ways) == 0 {
		return fmt.Errorf("it is only on networks without a way in (internal, or without the host): %w", berth.ErrInvalid)
	}
	ep, ok := plan.DefaultEndpoint(ways, true)
	if !ok {
		ep, ok = plan.DefaultEndpoint(ways, false)
	}
	if !ok {
		ep = ways[0].Endpoint
	}
	p.ep = ep
	p.network, err = tx.Network(ep.Network)
	return err
}

// wayIn reports whether the host leads to a network.
func wayIn(n berth.Network) bool { return n.Routed() && !n.Internal }

func (p *publication) targetOn(tx *store.Tx, atts []plan.Attachment) error {
	n, err := tx.Network(p.o.Network)
	if err != nil {
		return err
	}
	if !wayIn(n) {
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
func (p *publication) admitSpec(tx *store.Tx, s berth.PortSpec) error {
	hosts, err := p.hosts(s)
	if err != nil {
		return err
	}
	if s.HostLow != 0 && s.HostLow == s.HostHigh {
		_, err := p.take(tx, s, hosts, s.HostLow, nil)
		return err
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
		taken, err := p.take(tx, s, hosts, port, &last)
		if taken || err != nil {
			return err
		}
	}
	return fmt.Errorf("no port of %d-%d/%s is free (the last: %v): %w", low, high, s.Protocol, last, berth.ErrExhausted)
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
// is given, goes there, and nothing is taken.
func (p *publication) take(tx *store.Tx, s berth.PortSpec, hosts []netip.Addr, port uint16, busy *error) (bool, error) {
	at, err := tx.PortsAt(s.Protocol, port)
	if err != nil {
		return false, err
	}
	k := listenerKey{s.Protocol, port}
	chosen, replaced, taken := p.chosen, p.replaced, p.taken[k]
	for _, ip := range hosts {
		to := p.ep.Addr4()
		if ip.Is6() {
			to = p.ep.Addr6()
		}
		n := berth.Port{
			PortKey: berth.PortKey{Protocol: s.Protocol, HostIP: ip, HostPort: port},
			Sandbox: p.sb.ID, Network: p.network.ID, Interface: p.ep.Interface, To: netip.AddrPortFrom(to, s.Port),
		}
		same, old, err := p.free(tx, n, at)
		if busy != nil && (errors.Is(err, berth.ErrConflict) || errors.Is(err, errTwice) || errors.Is(err, errAgain) || same || len(old) > 0) {
			if *busy = err; err == nil || errors.Is(err, errAgain) {
				*busy = fmt.Errorf("port %s is published", portName(n.PortKey))
			}
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if same {
			p.ports = append(p.ports, n)
			continue
		}
		chosen, replaced, taken = append(chosen, n), append(replaced, old...), append(taken, ip)
	}
	p.chosen, p.replaced, p.taken[k] = chosen, replaced, taken
	return true, nil
}

var errTwice = fmt.Errorf("asked for twice: %w", berth.ErrInvalid)

// free reports whether a port may be published beside those at its host port:
// free, published as it is already (same), or to be taken over (old).
func (p *publication) free(tx *store.Tx, n berth.Port, at []berth.Port) (same bool, old []berth.Port, err error) {
	for _, ip := range p.taken[listenerKey{n.Protocol, n.HostPort}] {
		if overlap(ip, n.HostIP) {
			return false, nil, fmt.Errorf("port %s is %w", portName(n.PortKey), errTwice)
		}
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

// overlap reports whether one packet could be meant for both host addresses.
func overlap(a, b netip.Addr) bool {
	return a.Is4() == b.Is4() && (a == b || a.IsUnspecified() || b.IsUnspecified())
}

// forget takes the ports back and gives the replaced ones to their owners.
func (p *publication) forget(tx *store.Tx) error {
	if err := tx.DeletePorts(p.chosen...); err != nil {
		return err
	}
	return tx.PutPorts(p.replaced...)
}

// portName is a port as people write it: 0.0.0.0:8080/tcp.
func portName(k berth.PortKey) string {
	return netip.AddrPortFrom(k.HostIP, k.HostPort).String() + "/" + string(k.Protocol)
}
