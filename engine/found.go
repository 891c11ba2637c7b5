package engine

import (
	"fmt"
	"net/netip"

	"berth"
	"berth/internal/plan"
)

// find looks at an interface that others made, and at its other end.
func (a *admission) find(n berth.Network) (err error) {
	if a.o.Interface == "" {
		return fmt.Errorf("what was found is to be named: --interface: %w", berth.ErrInvalid)
	}
	if a.o.IP4.IsValid() || a.o.IP6.IsValid() || a.o.MAC != (berth.MAC{}) {
		return fmt.Errorf("what was found has its addresses: none can be asked for: %w", berth.ErrInvalid)
	}
	if !n.HostEnd {
		return fmt.Errorf("the host has no part in network %s: %w", n.Name, berth.ErrInvalid)
	}
	var there bool
	if a.found, a.hostEnd, there, err = a.e.kernel.Found(plan.Place(a.sb.ID), a.o.Interface); err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("there is no interface %s in the sandbox: %w", a.o.Interface, berth.ErrInvalid)
	}
	if a.hostEnd == "" && n.Driver == berth.Link {
		return fmt.Errorf("interface %s is no end of a pair whose other end is on the host: %w", a.o.Interface, berth.ErrInvalid)
	}
	return nil
}

// foundIn returns the first address of what was found that is in a subnet.
func (a *admission) foundIn(subs []berth.Subnet) netip.Addr {
	for _, p := range a.found.Addrs {
		for _, s := range subs {
			if s.Prefix.Contains(p.Addr()) {
				return p.Addr()
			}
		}
	}
	return netip.Addr{}
}

// lost names endpoints whose host ends others have taken away: nothing of
// theirs can be wanted any more.
func (e *Engine) lost(eps []berth.Endpoint) (map[string]bool, error) {
	lost := map[string]bool{}
	var there map[string]bool
	for _, ep := range eps {
		if !ep.Found || ep.Link == "" {
			continue
		}
		if there == nil {
			var err error
			if there, err = e.kernel.LinkNames(plan.Host); err != nil {
				return nil, err
			}
		}
		lost[ep.ID] = !there[ep.Link]
	}
	return lost, nil
}
