package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	"berth"
)

// usable is the first and the last address of a prefix that an interface can
// have: not an IPv4 network's own and its broadcast address (RFC 3021 gives
// those of a /31 back), not the subnet-router anycast address of IPv6
// (RFC 4291 §2.6.1, and RFC 6164 for a /127).
func usable(p netip.Prefix) (first, last num) {
	first, last = span(p)
	if p.Bits() >= p.Addr().BitLen()-1 {
		return first, last
	}
	first.lo++ // the low bit of a network's own address is 0
	if p.Addr().Is4() {
		last.lo--
	}
	return first, last
}

// window is the first and the last address that may be handed out; ok is false
// if there is none, as in a range that is just the broadcast address.
func window(s berth.Subnet) (first, last num, ok bool) {
	first, last = usable(s.Prefix)
	if s.Range.IsValid() {
		low, high := span(s.Range)
		if first.less(low) {
			first = low
		}
		if high.less(last) {
			last = high
		}
	}
	return first, last, !last.less(first)
}

// Gateway returns the gateway a subnet has if none is given: the first usable
// address of its range, or of the prefix, that no auxiliary address has. It is
// not valid if there is none.
func Gateway(s berth.Subnet) netip.Addr {
	s.Gateway = netip.Addr{}
	a, err := NextAddr(s, netip.Addr{}, func(netip.Addr) bool { return false })
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// NextAddr returns the first free address behind after, the address that was
// handed out last, and begins again at the start of the range: an address that
// was given back rests as long as it can. It returns an error that matches
// [berth.ErrExhausted] if taken has them all.
func NextAddr(s berth.Subnet, after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	return NextAddrIn(s, netip.Addr{}, netip.Addr{}, after, taken)
}

// NextAddrIn is NextAddr among the addresses from low to high of the whole
// subnet; one that is not valid sets no bound, and with none of them valid the
// subnet's range holds.
func NextAddrIn(s berth.Subnet, low, high, after netip.Addr, taken func(netip.Addr) bool) (netip.Addr, error) {
	v4 := s.Prefix.Addr().Is4()
	if low.IsValid() || high.IsValid() {
		s.Range = netip.Prefix{}
	}
	first, last, ok := window(s)
	if low.IsValid() && first.less(numOf(low)) {
		first = numOf(low)
	}
	if high.IsValid() && numOf(high).less(last) {
		last = numOf(high)
	}
	if !ok || last.less(first) {
		return netip.Addr{}, exhausted(s)
	}
	start := first
	if after.IsValid() && after.Is4() == v4 {
		// The cursor may lie anywhere: the range may have another place since.
		if n, ok := numOf(after).next(); ok && !n.less(first) && !last.less(n) {
			start = n
		}
	}
	aux := make(map[netip.Addr]bool, len(s.Aux))
	for _, a := range s.Aux {
		aux[a] = true
	}
	for n := start; ; {
		if a := n.addr(v4); a != s.Gateway && !aux[a] && !taken(a) {
			return a, nil
		}
		if n == last {
			n = first
		} else {
			n, _ = n.next()
		}
		if n == start {
			return netip.Addr{}, exhausted(s)
		}
	}
}

// CheckRoom reports that a subnet is too small for its gateway and a number of
// sandboxes: an error that matches [berth.ErrInvalid]. Its range does not count,
// as addresses outside can be asked for.
func CheckRoom(s berth.Subnet, sandboxes int) error {
	s.Range = netip.Prefix{}
	given := map[netip.Addr]bool{}
	var last netip.Addr
	for range sandboxes {
		a, err := NextAddr(s, last, func(a netip.Addr) bool { return given[a] })
		if err != nil {
			what := "a gateway and a sandbox"
			if sandboxes > 1 {
				what = fmt.Sprintf("a gateway and %d sandboxes", sandboxes)
			}
			return fmt.Errorf("subnet %s: it has no room for %s: %w", s.Prefix, what, berth.ErrInvalid)
		}
		given[a], last = true, a
	}
	return nil
}

func exhausted(s berth.Subnet) error {
	if s.Range.IsValid() {
		return fmt.Errorf("range %s of subnet %s: %w", s.Range, s.Prefix, berth.ErrExhausted)
	}
	return fmt.Errorf("subnet %s: %w", s.Prefix, berth.ErrExhausted)
}

// CheckAddr reports why an address that was asked for cannot be had in a
// subnet, whoever has what: an error that matches [berth.ErrInvalid], or
// [berth.ErrConflict] for the gateway and the auxiliary addresses. An address
// outside the range is allowed, as in Docker.
func CheckAddr(s berth.Subnet, a netip.Addr) error {
	if err := within(s.Prefix, a); err != nil {
		return fmt.Errorf("address %s: %w", a, err)
	}
	if a == s.Gateway {
		return fmt.Errorf("address %s is the gateway of %s: %w", a, s.Prefix, berth.ErrConflict)
	}
	for name, x := range s.Aux {
		if a == x {
			return fmt.Errorf("address %s is set aside for %s: %w", a, name, berth.ErrConflict)
		}
	}
	return nil
}

// within reports why an interface cannot have an address of a prefix.
func within(p netip.Prefix, a netip.Addr) error {
	switch {
	case a.Zone() != "":
		return fmt.Errorf("it has a zone: %w", berth.ErrInvalid)
	case !p.Contains(a):
		return fmt.Errorf("it is not in %s: %w", p, berth.ErrInvalid)
	}
	n := numOf(a)
	first, last := usable(p)
	switch {
	case n.less(first) && a.Is4():
		return fmt.Errorf("it is the network's own of %s: %w", p, berth.ErrInvalid)
	case n.less(first):
		return fmt.Errorf("it is the routers' anycast address of %s: %w", p, berth.ErrInvalid)
	case last.less(n):
		return fmt.Errorf("it is the broadcast address of %s: %w", p, berth.ErrInvalid)
	}
	return nil
}

// unfit are the prefixes no network can have, with the reason.
var unfit = []struct {
	prefix netip.Prefix
	why    string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "means this host"},
	{netip.MustParsePrefix("127.0.0.0/8"), "is loopback"},
	{netip.MustParsePrefix("169.254.0.0/16"), "is link-local"},
	{netip.MustParsePrefix("224.0.0.0/4"), "is multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "is broadcast"},
	{netip.MustParsePrefix("::/127"), "is the unspecified address and loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "is IPv4 in IPv6"},
	{netip.MustParsePrefix("fe80::/10"), "is link-local"},
	{netip.MustParsePrefix("ff00::/8"), "is multicast"},
}

// CheckSubnet reports why a network cannot have a subnet, whoever has what: an
// error that matches [berth.ErrInvalid]. The gateway may be missing.
func CheckSubnet(s berth.Subnet) error {
	if err := checkSubnet(s); err != nil {
		return fmt.Errorf("subnet %s: %w", s.Prefix, err)
	}
	return nil
}

func checkSubnet(s berth.Subnet) error {
	if !s.Prefix.IsValid() {
		return fmt.Errorf("not a prefix: %w", berth.ErrInvalid)
	}
	if m := s.Prefix.Masked(); m != s.Prefix {
		return fmt.Errorf("it has bits beyond its length, %s is meant: %w", m, berth.ErrInvalid)
	}
	for _, u := range unfit {
		if u.prefix.Overlaps(s.Prefix) {
			return fmt.Errorf("%s %s: %w", u.prefix, u.why, berth.ErrInvalid)
		}
	}
	if s.Gateway.IsValid() {
		if err := within(s.Prefix, s.Gateway); err != nil {
			return fmt.Errorf("gateway %s: %w", s.Gateway, err)
		}
	}
	if s.Range != (netip.Prefix{}) {
		switch {
		case !s.Range.IsValid():
			return fmt.Errorf("range %s: not a prefix: %w", s.Range, berth.ErrInvalid)
		case s.Range != s.Range.Masked():
			return fmt.Errorf("range %s: it has bits beyond its length, %s is meant: %w", s.Range, s.Range.Masked(), berth.ErrInvalid)
		case s.Range.Bits() < s.Prefix.Bits() || !s.Prefix.Contains(s.Range.Addr()):
			return fmt.Errorf("range %s: it is not inside: %w", s.Range, berth.ErrInvalid)
		}
		if _, _, ok := window(s); !ok {
			return fmt.Errorf("range %s: no address in it can be used: %w", s.Range, berth.ErrInvalid)
		}
	}
	return checkAux(s)
}

func checkAux(s berth.Subnet) error {
	names := make(map[netip.Addr]string, len(s.Aux))
	for name, a := range s.Aux {
		if err := within(s.Prefix, a); err != nil {
			return fmt.Errorf("auxiliary address %s=%s: %w", name, a, err)
		}
		if a == s.Gateway {
			return fmt.Errorf("auxiliary address %s=%s: it is the gateway: %w", name, a, berth.ErrInvalid)
		}
		if other, ok := names[a]; ok {
			return fmt.Errorf("auxiliary address %s=%s: %s has it: %w", max(name, other), a, min(name, other), berth.ErrInvalid)
		}
		names[a] = name
	}
	return nil
}

// MAC returns the hardware address that goes with an address on a network:
// always the same, so a reused address never meets a stale neighbour entry,
// and another host can compute it. It is unicast and locally administered. An
// IPv4 address is in it as it is, so no two of a network share one; of an IPv6
// address it is a hash.
func MAC(networkID string, a netip.Addr) berth.MAC {
	var m berth.MAC
	if a.Is4() {
		sum := sha256.Sum256([]byte("endpoint " + networkID))
		v4 := a.As4()
		copy(m[:2], sum[:2])
		copy(m[2:], v4[:])
	} else {
		v6 := a.As16()
		sum := sha256.Sum256(append([]byte("endpoint "+networkID+" "), v6[:]...))
		copy(m[:], sum[:6])
	}
	m[0] = m[0]&^1 | 2
	return m
}
