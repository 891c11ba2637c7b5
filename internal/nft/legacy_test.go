package nft

import (
	"encoding/binary"
	"testing"

	"berth/internal/foreign"
)

// FuzzLegacyEntries: whatever the kernel hands out, nothing is read beyond it.
func FuzzLegacyEntries(f *testing.F) {
	for _, k := range legacyKinds {
		// One entry without matches, with a standard target that drops.
		e := make([]byte, k.header+40)
		binary.NativeEndian.PutUint16(e[k.target:], uint16(k.header))
		binary.NativeEndian.PutUint16(e[k.target+2:], uint16(len(e)))
		binary.NativeEndian.PutUint32(e[k.header+32:], 0xffffffff)
		f.Add(e, k.family == "ip6", uint32(0), uint32(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, v6 bool, start, policy uint32) {
		k := legacyKinds[0]
		if v6 {
			k = legacyKinds[1]
		}
		l := layout{
			chains:   map[uint32]foreign.Chain{start: {Name: "FORWARD", Hook: foreign.Forward, Type: "filter"}},
			policies: map[uint32]bool{policy: true},
		}
		k.chains(b, l)
	})
}
