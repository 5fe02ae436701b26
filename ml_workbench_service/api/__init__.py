"""HTTP routes: parse, call one function, return a contract. One file per resource."""
