package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// These play another tool, for the demo: the table that iptables makes, with a
// policy that drops what is forwarded.

var otherTable = &nftables.Table{Name: "filter", Family: nftables.TableFamilyIPv4}

func otherForward() *nftables.Chain {
	drop := nftables.ChainPolicyDrop
	return &nftables.Chain{
		Name: "FORWARD", Table: otherTable, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
	}
}

// PlayForwardDrop is "iptables -P FORWARD DROP".
func (c *Conn) PlayForwardDrop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nft.AddTable(otherTable)
	c.nft.AddChain(otherForward())
	return explain("play another tool", c.nft.Flush())
}

// PlayForwardAccept is "iptables -I FORWARD -i BRIDGE -j ACCEPT" and the same
// with -o.
func (c *Conn) PlayForwardAccept(bridge string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := make([]byte, 16)
	copy(name, bridge)
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.nft.InsertRule(&nftables.Rule{Table: otherTable, Chain: otherForward(), Exprs: join(meta(key, reg1), is(name...), counted(), verdict(expr.VerdictAccept))})
	}
	return explain("play another tool", c.nft.Flush())
}

// PlayForwardGone takes the other tool's table away.
func (c *Conn) PlayForwardGone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nft.DelTable(otherTable)
	return explain("play another tool", c.nft.Flush())
}
