package ipam

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"

	"berth"
)

// A Pool is a prefix that networks get their subnets from, Size bits each.
type Pool struct {
	Base netip.Prefix
	Size int // bits of one subnet, 24 for a /24
}

// DefaultPools are Docker's pools for networks of one host: 31 subnets.
var DefaultPools = []Pool{
	{netip.MustParsePrefix("172.17.0.0/16"), 16},
	{netip.MustParsePrefix("172.18.0.0/16"), 16},
	{netip.MustParsePrefix("172.19.0.0/16"), 16},
	{netip.MustParsePrefix("172.20.0.0/14"), 16},
	{netip.MustParsePrefix("172.24.0.0/14"), 16},
	{netip.MustParsePrefix("172.28.0.0/14"), 16},
	{netip.MustParsePrefix("192.168.0.0/16"), 20},
}

// NextSubnet returns the first subnet of the IPv4 pools that overlaps nothing
// in taken. As in Docker the pools are asked in the order of their addresses,
// however they are given. It returns an error that matches
// [berth.ErrExhausted] if there is none.
func NextSubnet(pools []Pool, taken []netip.Prefix) (netip.Prefix, error) {
	pools, err := arrange(pools, true)
	if err != nil {
		return netip.Prefix{}, err
	}
	if len(pools) == 0 {
		return netip.Prefix{}, fmt.Errorf("no IPv4 address pool is configured: %w: give a subnet", berth.ErrExhausted)
	}
	if p, ok := search(pools, taken); ok {
		return p, nil
	}
	return netip.Prefix{}, full(pools)
}

// SubnetOfSize returns the first subnet of the given length, of either family,
// that lies in a pool and overlaps nothing in taken. It returns an error that
// matches [berth.ErrInvalid] if no pool is that large, and
// [berth.ErrExhausted] if none has room.
func SubnetOfSize(pools []Pool, bits int, v6 bool, taken []netip.Prefix) (netip.Prefix, error) {
	family, width := "IPv4", 32
	if v6 {
		family, width = "IPv6", 128
	}
	if bits < 1 || bits > width {
		return netip.Prefix{}, fmt.Errorf("%s subnet of length /%d: %w", family, bits, berth.ErrInvalid)
	}
	pools, err := arrange(pools, !v6)
	if err != nil {
		return netip.Prefix{}, err
	}
	pools = slices.DeleteFunc(pools, func(p Pool) bool { return p.Base.Bits() > bits })
	if len(pools) == 0 {
		return netip.Prefix{}, fmt.Errorf("no %s address pool holds a /%d: %w: give the subnet's address", family, bits, berth.ErrInvalid)
	}
	for i := range pools {
		pools[i].Size = bits
	}
	if p, ok := search(pools, taken); ok {
		return p, nil
	}
	return netip.Prefix{}, full(pools)
}

// ULAPool is the host's own IPv6 pool, Docker's for the same host: a /48 of
// fd00::/8 whose global id is the low 40 of the first 64 bits of the host id's
// SHA-256 (in the manner of RFC 4193 §3.2.2), a /64 for each network.
func ULAPool(hostID string) Pool {
	sum := sha256.Sum256([]byte(hostID))
	a := [16]byte{0: 0xfd}
	copy(a[1:6], sum[3:8])
	return Pool{netip.PrefixFrom(netip.AddrFrom16(a), 48), 64}
}

// ULA returns the first /64 of the host's [ULAPool] that overlaps nothing in
// taken. It returns an error that matches [berth.ErrExhausted] if there is
// none.
func ULA(hostID string, taken []netip.Prefix) (netip.Prefix, error) {
	return SubnetOfSize([]Pool{ULAPool(hostID)}, 64, true, taken)
}

func full(pools []Pool) error {
	these := fmt.Sprintf("address pool %s is", pools[0].Base)
	if len(pools) > 1 {
		these = fmt.Sprintf("all %d address pools are", len(pools))
	}
	return fmt.Errorf("%s full: %w: give --subnet or configure more pools", these, berth.ErrExhausted)
}

// arrange returns the pools of one family in order, without those that lie in
// an earlier one.
func arrange(pools []Pool, v4 bool) ([]Pool, error) {
	var out []Pool
	for _, p := range pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return nil, fmt.Errorf("address pool %s of /%d subnets: %w", p.Base, p.Size, berth.ErrInvalid)
		}
		if p.Base.Addr().Is4() == v4 {
			out = append(out, Pool{p.Base.Masked(), p.Size})
		}
	}
	// A shorter prefix of the same address comes first, so one that holds
	// another comes before it.
	slices.SortStableFunc(out, func(a, b Pool) int {
		if c := a.Base.Addr().Compare(b.Base.Addr()); c != 0 {
			return c
		}
		return a.Base.Bits() - b.Base.Bits()
	})
	kept := out[:0]
	for _, p := range out {
		if n := len(kept); n > 0 && kept[n-1].Base.Overlaps(p.Base) {
			continue
		}
		kept = append(kept, p)
	}
	return kept, nil
}

// search finds the first free slot of pools of one family. Pools and taken
// prefixes are both walked once in order, jumping from the end of one taken
// prefix to the next slot, so neither the number of slots nor of prefixes
// multiplies.
func search(pools []Pool, taken []netip.Prefix) (netip.Prefix, bool) {
	v4 := pools[0].Base.Addr().Is4()
	busy := make([]netip.Prefix, 0, len(taken))
	for _, t := range taken {
		if t.IsValid() && t.Addr().Is4() == v4 {
			busy = append(busy, t.Masked())
		}
	}
	// Prefixes are nested or apart: sorted this way, an outer one comes first,
	// and the ones inside it end before the slot that is looked at.
	slices.SortFunc(busy, func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	i := 0
	for _, p := range pools {
		width := p.Base.Addr().BitLen() - p.Size
		slot, end := span(p.Base)
		for !end.less(slot) {
			for i < len(busy) {
				if _, last := span(busy[i]); !last.less(slot) {
					break
				}
				i++
			}
			if i == len(busy) {
				return netip.PrefixFrom(slot.addr(v4), p.Size), true
			}
			first, last := span(busy[i])
			if slot.last(width).less(first) {
				return netip.PrefixFrom(slot.addr(v4), p.Size), true
			}
			next, ok := last.last(width).next()
			if !ok {
				break
			}
			slot = next
		}
	}
	return netip.Prefix{}, false
}
