package hostlocal

import (
	"fmt"
	"iter"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Add reserves one address of each set for an attachment.
func Add(c *Config, container, ifname string) (*current.Result, error) {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: c.Routes}
	if c.ResolvConf != "" {
		dns, err := resolvConf(c.ResolvConf)
		if err != nil {
			return nil, err
		}
		r.DNS = dns
	}
	s, err := open(c, true)
	if err != nil {
		return nil, err
	}
	defer s.close()
	owner := owner{container, ifname}
	asked := slices.Clone(c.asked)
	for i, set := range c.sets {
		var want netip.Addr
		if at := slices.IndexFunc(asked, func(a netip.Addr) bool { return set.of(a) >= 0 }); at >= 0 {
			want = asked[at]
			asked = slices.Delete(asked, at, at+1)
		}
		a, from, err := s.reserveOf(set, i, owner, want)
		if err != nil {
			// What the attachment had before is not given back: nothing of this
			// call was reserved if that is what is in the way.
			s.giveBack(r)
			return nil, fmt.Errorf("failed to allocate for range %d: %w", i, err)
		}
		r.IPs = append(r.IPs, &current.IPConfig{
			Address: net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(from.subnet.Bits(), a.BitLen())}, Gateway: from.gateway.AsSlice(),
		})
	}
	if len(asked) > 0 {
		s.giveBack(r)
		text := "failed to allocate all requested IPs:"
		for _, a := range asked {
			text += " " + a.String()
		}
		return nil, fmt.Errorf("%s", text)
	}
	return r, nil
}

// giveBack frees what a call has reserved.
func (s *store) giveBack(r *current.Result) {
	for _, ip := range r.IPs {
		s.release(ip.Address.IP.String())
	}
}

// reserveOf reserves an address of a set: the one that is wanted, or the next
// after the last.
func (s *store) reserveOf(set set, index int, o owner, want netip.Addr) (netip.Addr, span, error) {
	if want.IsValid() {
		p := set[set.of(want)]
		if want == p.gateway {
			return want, p, fmt.Errorf("requested ip %s is subnet's gateway", want)
		}
		got, err := s.reserve(want, index, o)
		if err == nil && !got {
			err = fmt.Errorf("requested IP address %s is not available in range set %s", want, set)
		}
		return want, p, err
	}
	has, err := s.of(o)
	if err != nil {
		return want, span{}, err
	}
	for _, a := range has {
		if set.of(a) >= 0 {
			return want, span{}, fmt.Errorf("%s has been allocated to %s, duplicate allocation is not allowed", a, o.container)
		}
	}
	for a, p := range set.after(s.last(index)) {
		got, err := s.reserve(a, index, o)
		if got || err != nil {
			return a, p, err
		}
	}
	return want, span{}, fmt.Errorf("no IP addresses available in range set: %s", set)
}

// after are the addresses of a set in turn, beginning behind one of them, or
// with the first. Gateways are left out.
func (s set) after(last netip.Addr) iter.Seq2[netip.Addr, span] {
	return func(yield func(netip.Addr, span) bool) {
		at := max(s.of(last), 0)
		start := s[at].first
		if s[at].contains(last) {
			if start = last.Next(); last == s[at].last {
				at = (at + 1) % len(s)
				start = s[at].first
			}
		}
		for a, begun := start, false; !begun || a != start; begun = true {
			if a != s[at].gateway && !yield(a, s[at]) {
				return
			}
			if a != s[at].last {
				a = a.Next()
				continue
			}
			at = (at + 1) % len(s)
			a = s[at].first
		}
	}
}

// Del frees what an attachment has. That it has nothing is no error.
func Del(c *Config, container, ifname string) error {
	s, err := open(c, false)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	return s.releaseOf(owner{container, ifname})
}

// Check reports whether an attachment has an address.
func Check(c *Config, container, ifname string) error {
	s, err := open(c, false)
	if err != nil {
		return err
	}
	if s != nil {
		defer s.close()
		has, err := s.of(owner{container, ifname})
		if err != nil || len(has) > 0 {
			return err
		}
	}
	return fmt.Errorf("host-local: Failed to find address added by container %s", container)
}

// GC frees what belongs to no attachment of a list.
func GC(c *Config, valid []types.GCAttachment) error {
	s, err := open(c, false)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	keep := map[owner]bool{}
	for _, a := range valid {
		keep[owner{a.ContainerID, a.IfName}] = true
		keep[owner{container: a.ContainerID}] = true // as older versions wrote it
	}
	return s.each(func(name string, o owner) error {
		if keep[o] {
			return nil
		}
		return s.release(name)
	})
}

// Status says why an attachment could get no address.
func Status(c *Config) error {
	s, err := open(c, false)
	if s == nil || err != nil {
		return err
	}
	defer s.close()
	taken := map[netip.Addr]bool{}
	err = s.each(func(name string, _ owner) error {
		a, err := netip.ParseAddr(name)
		taken[a] = err == nil
		return nil
	})
	if err != nil {
		return err
	}
	for _, set := range c.sets {
		free := false
		for a := range set.after(netip.Addr{}) {
			if free = !taken[a]; free {
				break
			}
		}
		if !free {
			return fmt.Errorf("no IP addresses available in range set: %s", set)
		}
	}
	return nil
}

// An owner is who has an address.
type owner struct{ container, ifname string }

// lineBreak is between the two in a file, whoever wrote it.
const lineBreak = "\r\n"

func (o owner) String() string { return strings.TrimSpace(o.container) + lineBreak + o.ifname }

func parseOwner(b []byte) owner {
	container, ifname, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return owner{strings.TrimSpace(container), ifname}
}
