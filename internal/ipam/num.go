package ipam

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// A num is an address of either family as an unsigned integer: netip has no
// arithmetic beyond Next and Prev, and jumping over a /8 needs more.
type num struct{ hi, lo uint64 }

func numOf(a netip.Addr) num {
	if a.Is4() {
		b := a.As4()
		return num{lo: uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return num{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// addr is the address of a family that n stands for.
func (n num) addr(v4 bool) netip.Addr {
	if v4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(n.lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b)
}

func (n num) less(m num) bool { return n.hi < m.hi || n.hi == m.hi && n.lo < m.lo }

// next is n+1; ok is false if that has no 128 bits.
func (n num) next() (sum num, ok bool) {
	lo, carry := bits.Add64(n.lo, 1, 0)
	hi, carry := bits.Add64(n.hi, 0, carry)
	return num{hi, lo}, carry == 0
}

// last is the last number of the aligned block of 2^width numbers that holds n.
func (n num) last(width int) num {
	switch {
	case width >= 128:
		return num{^uint64(0), ^uint64(0)}
	case width >= 64:
		return num{n.hi | (1<<(width-64) - 1), ^uint64(0)}
	default:
		return num{n.hi, n.lo | (1<<width - 1)}
	}
}

// first is the first number of the aligned block of 2^width numbers that holds
// n.
func (n num) first(width int) num {
	switch {
	case width >= 128:
		return num{}
	case width >= 64:
		return num{n.hi &^ (1<<(width-64) - 1), 0}
	default:
		return num{n.hi, n.lo &^ (1<<width - 1)}
	}
}

// span is the first and the last address of a prefix.
func span(p netip.Prefix) (first, last num) {
	width := p.Addr().BitLen() - p.Bits()
	n := numOf(p.Addr())
	return n.first(width), n.last(width)
}
