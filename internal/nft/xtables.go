package nft

import (
	"github.com/google/nftables/xt"

	"berth/internal/foreign"
)

// going are targets of iptables that let the packet go on.
var going = map[string]bool{
	"LOG": true, "NFLOG": true, "TRACE": true, "MARK": true, "CONNMARK": true, "CT": true, "NOTRACK": true, "TCPMSS": true,
	"SET": true, "AUDIT": true, "CLASSIFY": true, "DSCP": true, "TOS": true, "TTL": true, "HL": true, "CHECKSUM": true,
	"SECMARK": true, "CONNSECMARK": true, "RATEEST": true, "LED": true, "TEE": true, "IDLETIMER": true,
}

func (u *reader) target(name string) {
	switch {
	case name == "REJECT":
		u.out.Verdict = foreign.Drop
	case !going[name]:
		u.match(foreign.Unknown{})
		u.out.Verdict = foreign.Accept
	}
}

// matchesOf reads a match of iptables.
func matchesOf(info xt.InfoAny) []foreign.Match {
	switch m := info.(type) {
	case *xt.Comment:
		return nil
	case *xt.ConntrackMtinfo1:
		return conntrack(m.ConntrackMtinfoBase, uint16(m.StateMask), uint16(m.StatusMask))
	case *xt.ConntrackMtinfo2:
		return conntrack(m.ConntrackMtinfoBase, m.StateMask, m.StatusMask)
	case *xt.ConntrackMtinfo3:
		return conntrack(m.ConntrackMtinfoBase, m.StateMask, m.StatusMask)
	}
	return []foreign.Match{foreign.Unknown{}}
}

// conntrack reads "--ctstate" and "--ctstatus" (xt_conntrack.h), whose bits
// are those of nf_tables but for DNAT.
func conntrack(m xt.ConntrackMtinfoBase, states, status uint16) (out []foreign.Match) {
	const stateDNAT, stateUntracked = 1 << 7, 1 << 8
	flags := xt.ConntrackFlags(m.MatchFlags)
	inverted := xt.ConntrackFlags(m.InvertFlags)
	if flags&xt.ConntrackState != 0 {
		mask := uint32(states) & (foreign.Invalid | foreign.Established | foreign.Related | foreign.New)
		if states&stateDNAT != 0 {
			mask |= foreign.DNAT
		}
		if states&stateUntracked != 0 {
			mask |= foreign.Untracked
		}
		out = append(out, foreign.State{Bits: mask, Not: inverted&xt.ConntrackState != 0})
	}
	if flags&xt.ConntrackStatus != 0 {
		if status == statusDNAT {
			out = append(out, foreign.State{Bits: foreign.DNAT, Not: inverted&xt.ConntrackStatus != 0})
		} else {
			out = append(out, foreign.Unknown{})
		}
	}
	if flags&^(xt.ConntrackState|xt.ConntrackStatus|xt.ConntrackStateAlias) != 0 {
		out = append(out, foreign.Unknown{})
	}
	return out
}
